from vmm._native.kvm.bus import BusTarget

class StopPort(BusTarget):
    def __init__(self) -> None: ...
