"""The PCI root: bus 0, its host bridge, and the two ways to configuration space.

Mechanism 1 (ports 0xcf8 and 0xcfc) and ECAM reach the same functions. Functions 1 to 7 do not
exist and read all ones. Source: PCI Local Bus Specification 3.0, 3.2.2.3.2; PCI Express Base
Specification 5.0, 7.2.2 (ECAM).
"""

from __future__ import annotations

from _thread import allocate_lock

from devices.failure import tell_failure
from devices.pci.config_space import ConfigSpace
from devices.pci.decoding import Decoding
from devices.pci.function import PciFunction
from vmm._native.ports.pciconfig import ECAM, PORTS, ConfigTable, ConfigTarget

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmm._native.kvm.bus import Bus

SLOTS = 32
# The host bridge that firmware for this platform looks for.
BRIDGE_VENDOR = 0x8086
BRIDGE_DEVICE = 0x0D57
BRIDGE_CLASS = 0x060000
CONFIG_DATA = 4
FUNCTION_SHIFT = 12
SLOT_SHIFT = 15
BUS_SHIFT = 20
REGISTER_MASK = 0xFFF


def ones(size: int) -> int:
    """What an access that nobody decodes reads."""
    return (1 << 8 * size) - 1


class PciRoot:
    """Bus 0 with up to 32 single-function devices.

    ``windows`` are the (gpa, size) ranges in which memory BARs may lie, ``io_window`` that of
    ports. Built on the control thread; accesses come from vCPU threads. ``_lock`` holds the
    configuration space and the BARs of all functions, and where their ranges are on the two buses.
    It is the first that is taken: a function's own lock comes under it, the interrupt router's
    last. The control thread never takes it while vCPUs run.
    """

    def __init__(
        self, mmio: Bus, windows: list[tuple[int, int]], pio: Bus, io_window: tuple[int, int]
    ) -> None:
        self._lock = allocate_lock()
        self.functions: list[PciFunction | None] = [None] * SLOTS
        self._decoding = Decoding(
            self.functions,
            {"memory": mmio, "ports": pio},
            {"memory": windows, "ports": [io_window]},
            tell_failure,
        )
        bridge = ConfigSpace(BRIDGE_VENDOR, BRIDGE_DEVICE, BRIDGE_CLASS, 0, (0, 0))
        self.table = ConfigTable()
        self.add(0, PciFunction("host bridge", bridge))
        self.ports = ConfigPorts(self)
        self.ecam = Ecam(self)

    def add(self, slot: int, function: PciFunction) -> None:
        """Put a function into a slot; its BARs have addresses already."""
        if self.functions[slot] is not None:
            raise ValueError(f"PCI slot {slot} is taken; {function.name} needs another")
        self.functions[slot] = function
        function.slot = slot
        function.mapper = self._decoding
        asked = function.asked_dwords
        self.table.add(slot, None if asked is None else function.config.data, asked or 0)

    def config_read(self, bus: int, slot: int, function: int, register: int, size: int) -> int:
        """A configuration read by address; all ones where nothing is."""
        target = self.functions[slot] if bus == 0 and function == 0 else None
        if target is None or (register & 3 and (register & 3) + size > 4):
            return ones(size)
        try:
            with self._lock:
                return target.config_read(register, size)
        except Exception as error:
            tell_failure(target, error)
            return ones(size)

    def config_write(
        self, bus: int, slot: int, function: int, register: int, value: int, size: int
    ) -> None:
        """A configuration write by address; lost where nothing is."""
        target = self.functions[slot] if bus == 0 and function == 0 else None
        if target is None or (register & 3) + size > 4:
            return
        try:
            with self._lock:
                target.config_write(register, value, size)
        except Exception as error:
            tell_failure(target, error)

    def state(self) -> dict[str, object]:
        """The address register, and each function's configuration space and BARs."""
        from devices.pci.state import bus_state

        return bus_state(self.functions, self.ports.address)

    def set_state(self, state: object) -> None:
        """A state() again; BARs move where they must. StateError, and nothing changed."""
        from devices.pci.state import set_bus_state

        with self._lock:
            self.ports.address = set_bus_state(self.functions, self._decoding, state)


class ConfigPorts:
    """Ports 0xcf8 to 0xcff: the address register and a window of four bytes.

    ``target`` is what stands on the bus: it has the register, and asks here for the data that it
    cannot tell itself. A guest that shares the two ports between vCPUs has a lock of its own, as on
    any machine.
    """

    def __init__(self, root: PciRoot) -> None:
        self._root = root
        self.target = ConfigTarget(self, root.table, PORTS)

    @property
    def address(self) -> int:
        """The address register."""
        return self.target.address

    @address.setter
    def address(self, value: int) -> None:
        self.target.address = value

    def read(self, offset: int, size: int) -> int:
        """Configuration data at the byte lane accessed; the register is set."""
        return self._root.config_read(*_target(self.address, offset), size)

    def write(self, offset: int, value: int, size: int) -> None:
        """Write configuration data."""
        self._root.config_write(*_target(self.address, offset), value, size)


def _target(address: int, offset: int) -> tuple[int, int, int, int]:
    register = address & 0xFC | offset - CONFIG_DATA
    return address >> 16 & 0xFF, address >> 11 & 0x1F, address >> 8 & 7, register


class Ecam:
    """Memory-mapped configuration space: 4 KiB for each function.

    ``target`` stands on the bus, and asks here for what it cannot tell itself.
    """

    def __init__(self, root: PciRoot) -> None:
        self._root = root
        self.target = ConfigTarget(self, root.table, ECAM)

    def read(self, offset: int, size: int) -> int:
        """A configuration read of 1, 2 or 4 bytes; 8 bytes are two reads."""
        if size == 8:
            return self.read(offset, 4) | self.read(offset + 4, 4) << 32
        return self._root.config_read(*self._target(offset), size)

    def write(self, offset: int, value: int, size: int) -> None:
        """A configuration write of 1, 2 or 4 bytes; 8 bytes are two writes."""
        if size == 8:
            self.write(offset, value & 0xFFFFFFFF, 4)
            self.write(offset + 4, value >> 32, 4)
        else:
            self._root.config_write(*self._target(offset), value, size)

    def _target(self, offset: int) -> tuple[int, int, int, int]:
        register = offset & REGISTER_MASK
        slot = offset >> SLOT_SHIFT & 0x1F
        return offset >> BUS_SHIFT, slot, offset >> FUNCTION_SHIFT & 7, register
