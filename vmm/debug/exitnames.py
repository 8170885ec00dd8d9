"""Exits by name, down to the device and its register: "COM1 LSR", "disk0 queue notify".

A device is known by the name under which it is on the machine's buses, a register by the tables
here. Sources: 16550 data sheet; virtio 1.2, 4.1.4; PCI Express Base Specification 5.0, 7.2.2.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

from devices.virtio import pci as virtio_pci
from devices.virtio.common_config import SIZE as COMMON_SIZE
from vmm import layout

if TYPE_CHECKING:
    from vmm._native.kvm.bus import Bus
    from vmm.machine import Machine

# KVM_EXIT_* of linux/kvm.h, checked against it by tests/abi.
EXIT_IO, EXIT_MMIO, EXIT_RDMSR, EXIT_WRMSR = 2, 6, 29, 30
REASONS = {
    0: "KVM_RUN failed", 1: "exception", 3: "hypercall", 4: "debug", 5: "HLT",
    7: "interrupt window", 8: "shutdown", 9: "failed entry", 10: "signal", 17: "internal error",
    24: "system event",
}  # fmt: skip
# Read, written. The first two are the divisor's while DLAB is set, which an exit does not tell.
UART = (
    ("RBR", "THR"), ("IER", "IER"), ("IIR", "FCR"), ("LCR", "LCR"), ("MCR", "MCR"),
    ("LSR", "LSR"), ("MSR", "MSR"), ("SCR", "SCR"),
)  # fmt: skip
I8042 = {0: "system control", 3: "status"}
COMMON = {
    0x00: "device_feature_select", 0x04: "device_feature", 0x08: "driver_feature_select",
    0x0C: "driver_feature", 0x10: "config_msix_vector", 0x12: "num_queues", 0x14: "device_status",
    0x15: "config_generation", 0x16: "queue_select", 0x18: "queue_size",
    0x1A: "queue_msix_vector", 0x1C: "queue_enable", 0x1E: "queue_notify_off",
    0x20: "queue_desc", 0x24: "queue_desc", 0x28: "queue_driver", 0x2C: "queue_driver",
    0x30: "queue_device", 0x34: "queue_device",
}  # fmt: skip
# Places where something was before: a guest could move its BARs for ever.
REMEMBERED = 64
# What KVM serves itself; an exit there means that it could not.
KERNELS = (
    (layout.LAPIC_GPA, layout.PAGE_SIZE, "APIC"),
    (layout.IOAPIC_GPA, layout.PAGE_SIZE, "IOAPIC"),
)


def virtio_register(offset: int) -> str:
    """The register at ``offset`` of a virtio function's BAR 0."""
    if offset < COMMON_SIZE:
        return COMMON.get(offset, f"common configuration +{offset:#x}")
    for start, size, name in (
        (virtio_pci.ISR, 1, "ISR"),
        (virtio_pci.DEVICE, virtio_pci.NOTIFY - virtio_pci.DEVICE, "device configuration"),
        (virtio_pci.NOTIFY, virtio_pci.NOTIFY_SIZE, "queue notify"),
        (virtio_pci.MSIX_TABLE, virtio_pci.MSIX_TABLE_SIZE, "MSI-X table"),
        (virtio_pci.MSIX_PBA, virtio_pci.MSIX_PBA_SIZE, "MSI-X PBA"),
    ):
        if start <= offset < start + size:
            return name
    return f"BAR 0 +{offset:#x}"


def platform_register(device: str, offset: int, is_write: bool) -> str | None:
    """The whole name of a platform device's register; None for a device without a table."""
    if device == "COM1":
        return f"COM1 {UART[offset & 7][is_write]}"
    if device == "CMOS":
        return "CMOS data" if offset else "CMOS index"
    if device == "i8042":
        if offset == 3 and is_write:
            return "i8042 command"
        return f"i8042 {I8042.get(offset, f'+{offset:#x}')}"
    if device == "ACPI registers":
        return "ACPI sleep control" if is_write else "ACPI sleep status"
    if device == "PCI configuration":
        return "PCI configuration data" if offset >= 4 else "PCI configuration address"
    if device == "ECAM":
        slot, function = offset >> 15 & 0x1F, offset >> 12 & 7
        return f"ECAM {offset >> 20:02x}:{slot:02x}.{function}"
    return None


class Ranges:
    """What answers where on one bus: as it is now, and what has been elsewhere before.

    A guest may move a BAR while it is traced. An address is what answers there when the exits are
    read, else what answered there last; start(), stop() and each drain() look.
    """

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._seen: list[tuple[int, int, str]] = []
        self._now: list[tuple[int, int, str]] = []
        self.learn()

    def learn(self) -> None:
        """Look where things are."""
        now = self._bus.ranges()
        if now != self._now:
            gone = [one for one in self._now if one not in now and one not in self._seen]
            self._seen = [*gone, *self._seen][:REMEMBERED]
            self._now = now

    def find(self, address: int) -> tuple[str, int, int] | None:
        """(name, offset, length of the range) at ``address``."""
        at = bisect_right(self._now, (address, 1 << 64, "")) - 1
        if at >= 0 and address - self._now[at][0] < self._now[at][1]:
            start, length, name = self._now[at]
            return name, address - start, length
        for start, length, name in self._seen:
            if 0 <= address - start < length:
                return name, address - start, length
        return None


class ExitNames:
    """Names for the exits of one machine. Any thread, the GIL is enough."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._ports = Ranges(machine.pio)
        self._memory = Ranges(machine.mmio)

    def learn(self) -> None:
        """Look where devices answer now."""
        self._ports.learn()
        self._memory.learn()

    def name(self, reason: int, address: int, is_write: bool) -> str:
        """What such an exit is."""
        if reason == EXIT_IO:
            return self._access(self._ports, address, is_write) or f"port {address:#x}"
        if reason == EXIT_MMIO:
            return self._access(self._memory, address, is_write) or _unclaimed(address)
        if reason in (EXIT_RDMSR, EXIT_WRMSR):
            return f"MSR {address:#x} {'write' if reason == EXIT_WRMSR else 'read'}"
        return REASONS.get(reason, f"exit reason {reason}")

    def _access(self, ranges: Ranges, address: int, is_write: bool) -> str | None:
        found = ranges.find(address)
        if found is None:
            return None
        name, offset, length = found
        known = platform_register(name, offset, is_write)
        if known is not None:
            return known
        for function in self._machine.virtio:
            if name == f"{function.name} BAR {function.bar.index}":
                return f"{function.name} {virtio_register(offset)}"
        # One register is the device itself.
        return name if length <= 4 else f"{name} +{offset:#x}"


def _unclaimed(address: int) -> str:
    for start, size, name in KERNELS:
        if 0 <= address - start < size:
            return name
    return f"MMIO {address:#x}"
