"""PciDevice: a PCI function that is a Python class."""

from __future__ import annotations

import os
from _thread import allocate_lock
from typing import TYPE_CHECKING, Any, ClassVar

from devices.pci import bar as pci_bar
from devices.pci import msix as msix_table
from devices.pci.config_space import BAR_COUNT, ConfigSpace
from devices.pci.function import PciFunction
from devices.pci.msix import Msix
from vmm._native.kvm import bus
from vmm._native.kvm.hooktarget import HookTarget
from vmm.debug.caller import FAILED, Caller, fitting
from vmm.debug.device import Device, check_number
from vmm.debug.stop import STOP

if TYPE_CHECKING:
    from vmm.debug.cpu import Cpu
    from vmm.irq import MsiVector
    from vmm.machine import Machine

SUBCLASS_VENDOR = 0x1234
VECTORS_MAX = 2048
PBA_ALIGNMENT = 8
MSIX_BAR_MIN = 4096


class Bar:
    """What a base address register is for: ``size`` bytes (a power of two) of memory or ports.

    ``wide`` is a 64-bit one, which takes the next register as well.
    """

    def __init__(
        self, size: int, *, io: bool = False, wide: bool = False, prefetchable: bool = False
    ) -> None:
        if io and (wide or prefetchable):
            raise ValueError("a BAR of ports is neither 64-bit nor prefetchable")
        self.size = size
        self.io = io
        self.wide = wide
        self.prefetchable = prefetchable

    def make(self, index: int) -> pci_bar.Bar:
        """The register itself; ValueError for a size that is none."""
        if self.io:
            return pci_bar.IoBar(index, self.size)
        return pci_bar.Bar(index, self.size, wide=self.wide, prefetchable=self.prefetchable)

    def __repr__(self) -> str:
        kind = "ports" if self.io else "64-bit memory" if self.wide else "32-bit memory"
        return f"<BAR of {self.size:#x} bytes, {kind}{', prefetchable' * self.prefetchable}>"


class PciDevice(Device):
    """A PCI function of a guest: subclass it, and give the class or an object to Guest(devices=).

    ``bars`` are sizes in bytes, or vmm.Bar(), by index. ``msix_vectors`` interrupts have their
    table in a BAR of its own, the last one that is free. Methods run on the thread that called
    run(), with the vCPU that came here standing still; what they raise comes out of run().
    """

    vendor_id: int = SUBCLASS_VENDOR
    device_id: int = 0x0001
    # Base class, subclass, programming interface: FF is none of the known ones.
    class_code: int = 0xFF0000
    revision: int = 0
    # (vendor, device); None: the same as the function's own.
    subsystem: tuple[int, int] | None = None
    bars: ClassVar[dict[int, int | Bar]] = {}
    msix_vectors: int = 0
    _function: ScriptedFunction | None = None

    def read(self, bar: int, offset: int, size: int) -> Any:
        """A read of ``size`` (1, 2, 4, 8) bytes; an integer, or vmm.STOP (it reads ones then)."""
        return 0

    def write(self, bar: int, offset: int, value: int, size: int) -> Any:
        """A write; vmm.STOP makes run() return."""

    def config_read(self, offset: int, size: int, value: int) -> int:
        """What configuration space reads at ``offset``, where ``value`` stands."""
        return value

    def config_write(self, offset: int, value: int, size: int) -> None:
        """The driver wrote configuration space; what may change has changed."""

    def msix(self, vector: int) -> None:
        """Raise an interrupt; while it is masked it waits. Any thread."""
        if self._function is None or not 0 <= vector < len(self._function.msix.vectors):
            raise ValueError(f"{self.name}: no MSI-X vector {vector}: it has {self.msix_vectors}")
        os.eventfd_write(self._function.msix.vectors[vector].fd, 1)

    def _attach(self, machine: Machine, slot: int, caller: Caller) -> None:
        self._check()
        function = ScriptedFunction(self, machine.vm.irq.msi_vectors(self.msix_vectors), caller)
        for bar in function.bars:
            machine.bar_windows.place_emulated(bar)
        machine.pci.add(slot, function)
        self._function = function
        function.enable()

    def _check(self) -> None:
        check_number(self, "vendor_id", self.vendor_id, 16)
        check_number(self, "device_id", self.device_id, 16)
        check_number(self, "class_code", self.class_code, 24)
        check_number(self, "revision", self.revision, 8)
        if not 0 <= self.msix_vectors <= VECTORS_MAX:
            raise ValueError(f"{self.name}: msix_vectors={self.msix_vectors}: up to {VECTORS_MAX}")


class ScriptedFunction(PciFunction):
    """The function behind a PciDevice. ``_lock`` holds the MSI-X table."""

    def __init__(self, device: PciDevice, vectors: list[MsiVector], caller: Caller) -> None:
        subsystem = device.subsystem or (device.vendor_id, device.device_id)
        config = ConfigSpace(
            device.vendor_id, device.device_id, device.class_code, device.revision, subsystem
        )
        super().__init__(device.name, config)
        if device.overrides("config_read", PciDevice):
            self.asked_dwords = None
        self.device = device
        self._caller = caller
        self._lock = allocate_lock()
        self.msix = Msix(vectors)
        self._control = -1
        self._table: pci_bar.Bar | None = None
        self._add_bars()
        if vectors:
            self._add_msix(len(vectors))

    def _add_bars(self) -> None:
        for index, spec in sorted(self.device.bars.items()):
            spec = spec if isinstance(spec, Bar) else Bar(spec)
            last = index + 1 if spec.wide else index
            if not 0 <= index <= last < BAR_COUNT or index in self._registers:
                raise ValueError(f"{self.name}: no register is free for BAR {index}, {spec}")
            try:
                self.add_bar(spec.make(index))
            except ValueError as error:
                raise ValueError(f"{self.name}: {error}") from None

    def _add_msix(self, count: int) -> None:
        free = [index for index in range(BAR_COUNT) if index not in self._registers]
        if not free:
            raise ValueError(f"{self.name}: no BAR is free for the MSI-X table")
        self._pba = -(-msix_table.ENTRY_SIZE * count // PBA_ALIGNMENT) * PBA_ALIGNMENT
        size = max(MSIX_BAR_MIN, 1 << (self._pba + -(-count // 64) * 8 - 1).bit_length())
        self._table = pci_bar.Bar(free[-1], size)
        self.add_bar(self._table)
        capability = self.msix.capability(self._table.index, 0, self._pba)
        self._control = self.config.add_capability(capability) + msix_table.CONTROL
        self.config.allow(self._control, 0xC000, 2)

    def bar_target(self, bar: pci_bar.Bar) -> object:
        """Where accesses of a BAR go."""
        return self if bar is self._table else HookTarget(_Register(self, bar.index).access)

    # --- the BAR of the MSI-X table ---

    def read(self, offset: int, size: int) -> int:
        """A read of the table or the pending bits."""
        with self._lock:
            if offset >= self._pba:
                return self.msix.pba_read(offset - self._pba, size)
            return self.msix.table_read(offset, size)

    def write(self, offset: int, value: int, size: int) -> None:
        """A write of the table."""
        with self._lock:
            if offset < self._pba:
                self.msix.table_write(offset, value, size)

    # --- configuration space ---

    def config_read(self, offset: int, size: int) -> int:
        """As the base, and what the script makes of it."""
        value = super().config_read(offset, size)
        if not self.device.overrides("config_read", PciDevice):
            return value
        found = self._caller.run(bus.current_vcpu(), self._config_value, offset, size, value)
        return value if found is FAILED else int(found)

    def _config_value(self, offset: int, size: int, value: int) -> int:
        found = self.device.config_read(offset, size, value)
        return fitting(found, size, f"{self.name}.config_read()")

    def config_write(self, offset: int, value: int, size: int) -> None:
        """As the base, MSI-X, and then the script."""
        super().config_write(offset, value, size)
        if self._control >= 0 and offset < self._control + 2 and self._control < offset + size:
            with self._lock:
                self.msix.set_control(self.config.get(self._control, 2))
        if self.device.overrides("config_write", PciDevice):
            self._caller.run(bus.current_vcpu(), self.device.config_write, offset, value, size)


class _Register:
    """One BAR of a script's: brings accesses to its read() and write()."""

    def __init__(self, function: ScriptedFunction, index: int) -> None:
        self._function = function
        self._index = index

    def access(
        self, vcpu: int, offset: int, value: int, size: int, is_write: bool
    ) -> tuple[int, int]:
        """One access of the guest's, on its vCPU's thread: (value, outcome)."""
        function, index = self._function, self._index
        device, caller = function.device, function._caller

        def check(found: object) -> int:
            return value if is_write else fitting(found, size, f"{device.name} BAR {index}")

        def call(cpu: Cpu) -> Any:
            device.cpu = cpu
            if is_write:
                return device.write(index, offset, value, size)
            return device.read(index, offset, size)

        found, outcome = caller.ask(vcpu, device, check, call)
        return value if found is FAILED or found is STOP else found, outcome
