from vmm._native.kvm.bus import BusTarget

class PostPort(BusTarget):
    last: int
    count: int
    def __init__(self) -> None: ...
