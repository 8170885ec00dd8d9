from vmm._native.memory.guestmem import GuestMemory

class Patch:
    gpa: int
    length: int
    users: int
    code: bytes
    original: bytes | None
    overwritten: bool
    users: int
    def __init__(self, memory: GuestMemory, gpa: int, code: bytes) -> None: ...
    def put(self) -> None: ...
    def take_out(self) -> None: ...
    def forget(self) -> None: ...
