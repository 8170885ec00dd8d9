from vmm._native.memory.guestmem import GuestMemory

class VirtQueue:
    size: int
    def __init__(
        self,
        memory: GuestMemory,
        size: int,
        desc_gpa: int,
        driver_gpa: int,
        device_gpa: int,
        *,
        event_idx: bool = False,
        indirect: bool = True,
    ) -> None: ...
    def take(self) -> tuple[int, list[tuple[bytes | memoryview, bool]]] | None: ...
    def give_back(self, head: int, written: int) -> bool: ...
    def rearm(self) -> bool: ...

def reason_text(reason: int) -> str: ...
