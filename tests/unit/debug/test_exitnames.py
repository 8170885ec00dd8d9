"""Exits by name, and what happens to names when BARs move."""

from __future__ import annotations

import pytest

from tests.support.fake_trace import BLOCK_GPA, IO, MMIO, RDMSR, SIGNAL, WRMSR, FakeMachine
from vmm import layout
from vmm.debug.exitnames import ExitNames

NAMES = [
    (IO, 0x3F8, False, "COM1 RBR"),
    (IO, 0x3F8, True, "COM1 THR"),
    (IO, 0x3FA, True, "COM1 FCR"),
    (IO, 0x3FD, False, "COM1 LSR"),
    (IO, 0x61, False, "i8042 system control"),
    (IO, 0x64, True, "i8042 command"),
    (IO, 0x70, True, "CMOS index"),
    (IO, 0x71, False, "CMOS data"),
    (IO, 0x80, True, "POST code port"),
    (IO, 0x600, True, "ACPI sleep control"),
    (IO, 0x608, False, "PM timer"),
    (IO, 0xCF8, True, "PCI configuration address"),
    (IO, 0xCFD, False, "PCI configuration data"),
    (IO, 0x1234, False, "port 0x1234"),
    (MMIO, layout.ECAM_GPA + (2 << 15) + 4, False, "ECAM 00:02.0"),
    (MMIO, layout.ECAM_GPA + (1 << 20) + (31 << 15) + (7 << 12), False, "ECAM 01:1f.7"),
    (MMIO, BLOCK_GPA + 0x14, True, "disk0 device_status"),
    (MMIO, BLOCK_GPA + 0x24, True, "disk0 queue_desc"),
    (MMIO, BLOCK_GPA + 0x2000, False, "disk0 ISR"),
    (MMIO, BLOCK_GPA + 0x4008, False, "disk0 device configuration"),
    (MMIO, BLOCK_GPA + 0x6004, True, "disk0 queue notify"),
    (MMIO, BLOCK_GPA + 0x8010, True, "disk0 MSI-X table"),
    (MMIO, BLOCK_GPA + 0x48000, False, "disk0 MSI-X PBA"),
    (MMIO, BLOCK_GPA + 0x70000, False, "disk0 BAR 0 +0x70000"),
    (MMIO, layout.MMIO32_GPA + 0x10, False, "gpu BAR 1 +0x10"),
    (MMIO, layout.LAPIC_GPA + 0xB0, True, "APIC"),
    (MMIO, 0xD0000000, False, "MMIO 0xd0000000"),
    (RDMSR, 0x1B, False, "MSR 0x1b read"),
    (WRMSR, 0xC0000080, False, "MSR 0xc0000080 write"),
    (SIGNAL, 0, False, "signal"),
    (99, 0, False, "exit reason 99"),
]


@pytest.mark.parametrize(("reason", "address", "is_write", "name"), NAMES)
def test_name(reason, address, is_write, name):
    assert ExitNames(FakeMachine()).name(reason, address, is_write) == name


def test_a_bar_that_moved_is_known_at_both_places():
    machine = FakeMachine()
    names = ExitNames(machine)
    machine.mmio.move(BLOCK_GPA, 2 * BLOCK_GPA)
    names.learn()
    for gpa in (BLOCK_GPA, 2 * BLOCK_GPA):
        assert names.name(MMIO, gpa + 0x6000, True) == "disk0 queue notify"


def test_what_answers_now_comes_first():
    machine = FakeMachine()
    names = ExitNames(machine)
    machine.mmio.move(BLOCK_GPA, 2 * BLOCK_GPA)
    machine.mmio.attach(BLOCK_GPA, 0x1000, object(), "rng BAR 0")
    names.learn()
    assert names.name(MMIO, BLOCK_GPA + 8, True) == "rng BAR 0 +0x8"
    assert names.name(MMIO, BLOCK_GPA + 0x6000, True) == "disk0 queue notify"
