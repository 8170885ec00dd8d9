from vmm._native.kvm.bus import BusTarget

class PmTimer(BusTarget):
    def __init__(self) -> None: ...
