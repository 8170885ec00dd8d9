"""MSI-X vectors against a real LAPIC: masked ones wait, unmasking delivers them."""

from __future__ import annotations

import os
import time

import pytest

from devices.pci.msix import Msix
from tests.support.guest_asm import Program
from tests.support.speed import patience
from tests.support.tiny_machine import TinyMachine

VECTOR = 0x51
ADDRESS = 0xFEE00000
SPURIOUS_GPA = 0xFEE000F0
IRR = 0x200


@pytest.fixture
def rig(tmp_path):
    """A stopped machine whose LAPIC is enabled, with two MSI-X vectors of its own."""
    program = Program().write(SPURIOUS_GPA, 0x1FF)
    with TinyMachine(tmp_path, program.power_off()) as tiny:
        assert tiny.run().kind == "shutdown"
        yield tiny.machine, Msix(tiny.machine.vm.irq.msi_vectors(2))


def requested(machine, vector: int) -> bool:
    deadline = time.monotonic() + patience(1)
    while True:
        page = machine.vcpus[0].fd.get_lapic()
        word = int.from_bytes(page[IRR + vector // 32 * 16 :][:4], "little")
        if word >> vector % 32 & 1:
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)


def program_entry(msix: Msix, index: int, vector: int, masked: bool = False) -> None:
    for offset, value in ((0, ADDRESS), (4, 0), (8, vector), (12, int(masked))):
        msix.table_write(16 * index + offset, value, 4)


def test_an_unmasked_vector_arrives(rig):
    machine, msix = rig
    program_entry(msix, 0, VECTOR)
    msix.set_control(0x8000)
    os.eventfd_write(msix.vectors[0].fd, 1)
    assert requested(machine, VECTOR)
    assert msix.pba_read(0, 8) == 0


@pytest.mark.parametrize("how", ["entry", "function", "disabled"])
def test_a_masked_vector_waits(rig, how):
    machine, msix = rig
    program_entry(msix, 1, VECTOR, masked=how == "entry")
    msix.set_control({"entry": 0x8000, "function": 0xC000, "disabled": 0}[how])
    os.eventfd_write(msix.vectors[1].fd, 1)
    assert msix.pba_read(0, 8) == 2
    assert not requested(machine, VECTOR)
    if how == "entry":
        msix.table_write(16 + 12, 0, 4)
    else:
        msix.set_control(0x8000)
    assert requested(machine, VECTOR)
    assert msix.pba_read(0, 8) == 0


def test_what_waits_in_many_vectors_arrives_when_the_mask_goes(rig):
    machine, _ = rig
    count = 96
    msix = Msix(machine.vm.irq.msi_vectors(count))
    msix.set_control(0xC000)
    for index in range(count):
        program_entry(msix, index, 0x30 + index, masked=index % 3 == 0)
        os.eventfd_write(msix.vectors[index].fd, 1)
    msix.set_control(0x8000)
    arrived = [index for index in range(count) if index % 3]
    assert all(requested(machine, 0x30 + index) for index in arrived)
    assert msix.state()["pending"] == list(range(0, count, 3))
    for index in range(0, count, 3):
        msix.table_write(16 * index + 12, 0, 4)
        assert requested(machine, 0x30 + index)
    assert msix.state()["pending"] == []


def test_a_vector_moves(rig):
    machine, msix = rig
    program_entry(msix, 0, VECTOR)
    msix.set_control(0x8000)
    program_entry(msix, 0, VECTOR + 1)
    os.eventfd_write(msix.vectors[0].fd, 1)
    assert requested(machine, VECTOR + 1)


def test_accesses_outside_the_table(rig):
    _, msix = rig
    for offset, size in ((32, 4), (1 << 18, 8), (30, 4), (0, 1), (2, 2)):
        msix.table_write(offset, 0xFF, size)
        assert msix.table_read(offset, size) == 0
