from vmm._native.kvm.bus import BusTarget

PORTS: int
ECAM: int

class ConfigTable:
    def add(self, slot: int, data: bytearray | None, asked: int) -> None: ...

class ConfigTarget(BusTarget):
    address: int
    def __init__(self, device: object, table: ConfigTable, way: int) -> None: ...
