from typing import Any

RECORD_SIZE: int
SIZE_MAX: int
NO_RIP: int
SYNC_RIP: int
IOCTL_RIP: int
FAILED: int
CAP_SYNC_REGS: int
SYNC_GENERAL_REGS: int

class TraceRing:
    written: int
    dropped: int
    waiting: int
    def __init__(self, size: int, rip: int = 0) -> None: ...
    def take(self, vcpu: int) -> object: ...
    def read_into(self, target: Any) -> int: ...
    def put(self, records: Any) -> None: ...

def tsc_now() -> tuple[int, int]: ...
