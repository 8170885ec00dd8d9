from vmm._native.kvm.bus import BusTarget

class VirtioRegisters(BusTarget):
    selected: int
    queues: int
    def __init__(self, device: object, queues: int) -> None: ...
