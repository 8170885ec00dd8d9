"""The PCI root: bus 0, its host bridge, and the two ways to configuration space.

Mechanism 1 (ports 0xcf8 and 0xcfc) and ECAM reach the same functions. Functions 1 to 7 do not
exist and read all ones. Source: PCI Local Bus Specification 3.0, 3.2.2.3.2; PCI Express Base
Specification 5.0, 7.2.2 (ECAM).
"""

from __future__ import annotations

from _thread import allocate_lock

from devices.pci.config_space import ConfigSpace
from devices.pci.function import PciFunction
from vmm.log.hub import get_logger

TYPE_CHECKING = False
if TYPE_CHECKING:
    from devices.pci.bar import Bar
    from vmm._native.kvm.bus import Bus

log = get_logger(__name__)

SLOTS = 32
# The host bridge that firmware for this platform looks for.
BRIDGE_VENDOR = 0x8086
BRIDGE_DEVICE = 0x0D57
BRIDGE_CLASS = 0x060000
CONFIG_ENABLE = 1 << 31
CONFIG_DATA = 4
FUNCTION_SHIFT = 12
SLOT_SHIFT = 15
BUS_SHIFT = 20
REGISTER_MASK = 0xFFF
MOVE_WARNINGS = 10


def ones(size: int) -> int:
    """What an access that nobody decodes reads."""
    return (1 << 8 * size) - 1


class PciRoot:
    """Bus 0 with up to 32 single-function devices.

    ``windows`` are the (gpa, size) ranges in which memory BARs may lie, ``io_window`` that of
    ports. Built on the control thread; accesses come from vCPU threads with the GIL held.
    """

    def __init__(
        self, mmio: Bus, windows: list[tuple[int, int]], pio: Bus, io_window: tuple[int, int]
    ) -> None:
        self._buses = {"memory": mmio, "ports": pio}
        self._windows = {"memory": windows, "ports": [io_window]}
        self._warnings = 0
        # Several vCPUs may write configuration space at once; a BAR moves in several steps.
        self._lock = allocate_lock()
        self.functions: list[PciFunction | None] = [None] * SLOTS
        bridge = ConfigSpace(BRIDGE_VENDOR, BRIDGE_DEVICE, BRIDGE_CLASS, 0, (0, 0))
        self.add(0, PciFunction("host bridge", bridge))
        self.ports = ConfigPorts(self)
        self.ecam = Ecam(self)

    def add(self, slot: int, function: PciFunction) -> None:
        """Put a function into a slot; its BARs have addresses already."""
        if self.functions[slot] is not None:
            raise ValueError(f"PCI slot {slot} is taken; {function.name} needs another")
        self.functions[slot] = function
        function.slot = slot
        function.mapper = self

    def config_read(self, bus: int, slot: int, function: int, register: int, size: int) -> int:
        """A configuration read by address; all ones where nothing is."""
        target = self.functions[slot] if bus == 0 and function == 0 else None
        if target is None or (register & 3 and (register & 3) + size > 4):
            return ones(size)
        with self._lock:
            return target.config_read(register, size)

    def config_write(
        self, bus: int, slot: int, function: int, register: int, value: int, size: int
    ) -> None:
        """A configuration write by address; lost where nothing is."""
        target = self.functions[slot] if bus == 0 and function == 0 else None
        if target is not None and (register & 3) + size <= 4:
            with self._lock:
                target.config_write(register, value, size)

    def map_bar(self, function: PciFunction, bar: Bar, address: int) -> bool:
        """Let a BAR answer at ``address``, when it lies in a window and nothing else is there."""
        if not self._inside(bar, address):
            self._warn(function, bar, address, "outside the PCI windows")
            return False
        bus = self._buses[bar.space]
        try:
            if bar.mapped is None:
                name = f"{function.name} BAR {bar.index}"
                bus.attach(address, bar.size, function.bar_target(bar), name)
            else:
                bus.move(bar.mapped, address)
        except ValueError as error:
            self._warn(function, bar, address, str(error))
            return False
        return True

    def unmap_bar(self, function: PciFunction, bar: Bar) -> None:
        """Stop a BAR from answering."""
        if bar.mapped is not None:
            self._buses[bar.space].detach(bar.mapped)

    def _inside(self, bar: Bar, address: int) -> bool:
        if not bar.wide and address + bar.size > 1 << 32:
            return False
        return any(
            start <= address and address + bar.size <= start + size
            for start, size in self._windows[bar.space]
        )

    def _warn(self, function: PciFunction, bar: Bar, address: int, why: str) -> None:
        # The guest decides how often this happens, so it is said a few times only.
        self._warnings += 1
        if self._warnings <= MOVE_WARNINGS:
            log.warning(f"{function.name}: BAR {bar.index} not moved to {address:#x}: {why}")


class ConfigPorts:
    """Ports 0xcf8 to 0xcff: the address register and a window of four bytes."""

    def __init__(self, root: PciRoot) -> None:
        self._root = root
        self._address = 0

    def read(self, offset: int, size: int) -> int:
        """The address register, or configuration data at the byte lane accessed."""
        if (offset + size > CONFIG_DATA and offset < CONFIG_DATA) or size > CONFIG_DATA:
            return ones(size)
        if offset < CONFIG_DATA:
            return self._address >> 8 * offset & ones(size)
        if not self._address & CONFIG_ENABLE:
            return ones(size)
        return self._root.config_read(*self._target(offset), size)

    def write(self, offset: int, value: int, size: int) -> None:
        """Change the address register (any part of it), or write configuration data."""
        if (offset + size > CONFIG_DATA and offset < CONFIG_DATA) or size > CONFIG_DATA:
            return
        if offset < CONFIG_DATA:
            mask = ones(size) << 8 * offset
            self._address = (self._address & ~mask | value << 8 * offset) & 0xFFFFFFFF
        elif self._address & CONFIG_ENABLE:
            self._root.config_write(*self._target(offset), value, size)

    def _target(self, offset: int) -> tuple[int, int, int, int]:
        address = self._address
        register = address & 0xFC | offset - CONFIG_DATA
        return address >> 16 & 0xFF, address >> 11 & 0x1F, address >> 8 & 7, register


class Ecam:
    """Memory-mapped configuration space: 4 KiB for each function."""

    def __init__(self, root: PciRoot) -> None:
        self._root = root

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
