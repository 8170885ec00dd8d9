from vmm._native.bus import BusTarget

class PostPort(BusTarget):
    last: int
    count: int
    def __init__(self) -> None: ...
