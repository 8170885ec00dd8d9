from vmm._native.bus import BusTarget

class PmTimer(BusTarget):
    def __init__(self) -> None: ...
