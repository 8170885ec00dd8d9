"""A machine for Trace without KVM: its vCPUs' loops do as they are told."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from vmm import layout
from vmm._native.kvm.bus import Bus
from vmm._native.kvm.tracering import TraceRing, tsc_now
from vmm.debug.tracerecord import RAW

IO, MMIO, SIGNAL, RDMSR, WRMSR = 2, 6, 10, 29, 30
BLOCK_GPA = 0x1_0000_0000
DEVICE = object()


class FakeLoop:
    """A vCPU that exits when a test says so."""

    def __init__(self, vcpu: int) -> None:
        self.vcpu = vcpu
        self.ring: TraceRing | None = None

    def set_trace(self, ring: TraceRing | None) -> None:
        self.ring = ring

    def exits(self, *kinds: tuple[int, int, bool], guest: int = 2000, vmm: int = 1000) -> None:
        """(reason, address, is_write) each; durations in cycles of the TSC, from now on."""
        if self.ring is None:
            return
        records = np.zeros(len(kinds), RAW)
        now = tsc_now()[0]
        for number, (reason, address, is_write) in enumerate(kinds):
            at = now + number * (guest + vmm)
            records[number] = (
                at, at + guest, at + guest + vmm, address, 0xFFFF_FFFF_FFFF_FFFF, 0, reason, 1,
                self.vcpu, 4, is_write, 0,
            )  # fmt: skip
        self.ring.put(records.tobytes())


class FakeMachine:
    """Two buses with a few devices on them, one virtio function, and vCPUs of the above kind."""

    def __init__(self, vcpus: int = 1) -> None:
        self.loops = [FakeLoop(number) for number in range(vcpus)]
        self.vcpus = [SimpleNamespace(loop=loop) for loop in self.loops]
        self.pio = Bus("ports")
        self.mmio = Bus("MMIO")
        self.vm = SimpleNamespace(fd=SimpleNamespace(check_extension=lambda capability: 0))
        bar = SimpleNamespace(index=0)
        self.virtio = [SimpleNamespace(name="disk0", bar=bar)]
        for start, length, name in (
            (layout.COM1_PORT, 8, "COM1"),
            (layout.I8042_PORT, 4, "i8042"),
            (layout.CMOS_PORT, 2, "CMOS"),
            (layout.POST_PORT, 1, "POST code port"),
            (layout.ACPI_PORT, 4, "ACPI registers"),
            (layout.PM_TIMER_PORT, 4, "PM timer"),
            (layout.PCI_CONFIG_PORT, 8, "PCI configuration"),
        ):
            self.pio.attach(start, length, DEVICE, name)
        self.mmio.attach(layout.ECAM_GPA, layout.ECAM_SIZE, DEVICE, "ECAM")
        self.mmio.attach(BLOCK_GPA, 0x80000, DEVICE, "disk0 BAR 0")
        self.mmio.attach(layout.MMIO32_GPA, 0x1000, DEVICE, "gpu BAR 1")
