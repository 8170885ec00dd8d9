from typing import Any

from vmm._native.kvm.vm import VmFd

RECORD_SIZE: int
SIZE_MAX: int
NO_RIP: int
SYNC_RIP: int
IOCTL_RIP: int
FAILED: int

class TraceRing:
    written: int
    dropped: int
    waiting: int
    def __init__(self, size: int, rip: int = 0) -> None: ...
    def take(self, vcpu: int) -> object: ...
    def read_into(self, target: Any) -> int: ...
    def put(self, records: Any) -> None: ...

def rip_mode(vm: VmFd) -> int: ...
def tsc_now() -> tuple[int, int]: ...
