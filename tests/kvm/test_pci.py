"""PCI by both mechanisms: configuration space, BAR sizing and moving, registers behind a BAR."""

from __future__ import annotations

import pytest

from tests.support.guest_asm import Program
from tests.support.tiny_machine import TinyMachine, results
from vmm.layout import ECAM_GPA, MMIO32_GPA

ENABLE = 1 << 31
CONSOLE, DISK, RNG = 1, 2, 4
LOW_A, LOW_B = MMIO32_GPA + 0x100000, MMIO32_GPA + 0x900000
BAR_SIZE = 0x80000
NUM_QUEUES, DEVICE_STATUS = 0x12, 0x14


def select(program: Program, slot: int, register: int) -> None:
    program.out(0xCF8, ENABLE | slot << 11 | register, 4)


def cf8(program: Program, slot: int, register: int, size: int = 4) -> int:
    select(program, slot, register & ~3)
    return program.read_port(0xCFC + (register & 3), size)


def cf8_write(program: Program, slot: int, register: int, value: int, size: int = 4) -> None:
    select(program, slot, register & ~3)
    program.out(0xCFC + (register & 3), value, size)


def ecam(slot: int, register: int) -> int:
    return ECAM_GPA + (slot << 15) + register


@pytest.mark.parametrize(("register", "size"), [(0, 4), (0, 2), (2, 2), (8, 1), (11, 1), (0x2C, 4)])
def test_both_mechanisms_agree(tmp_path, register, size):
    program = Program()
    for slot in (0, CONSOLE, DISK):
        cf8(program, slot, register, size)
        program.read(ecam(slot, register), size)
    found = results(tmp_path, program)
    assert found[0::2] == found[1::2]
    assert len(set(found)) > 1 or register in (0x2C, 0, 8, 11)


def test_identities(tmp_path):
    program = Program()
    for slot in range(6):
        cf8(program, slot, 0)
    assert results(tmp_path, program) == [
        0x0D578086, 0x10431AF4, 0x10421AF4, 0x10421AF4, 0x10441AF4, 0xFFFFFFFF,
    ]  # fmt: skip


def test_what_is_not_there_reads_ones(tmp_path):
    program = Program()
    program.read(ecam(31, 0))
    program.read(ECAM_GPA + (CONSOLE << 15) + (1 << 12))
    program.read(ECAM_GPA + (1 << 20))
    program.out(0xCF8, CONSOLE << 11, 4)  # without the enable bit
    program.read_port(0xCFC, 4)
    assert results(tmp_path, program) == [0xFFFFFFFF] * 4


@pytest.mark.parametrize("decoding", [True, False])
def test_bar_sizing(tmp_path, decoding):
    program = Program()
    if not decoding:
        cf8_write(program, DISK, 4, 0, 2)
    before = cf8(program, DISK, 0x10)
    high = cf8(program, DISK, 0x14)
    cf8_write(program, DISK, 0x10, 0xFFFFFFFF)
    size = cf8(program, DISK, 0x10)
    cf8_write(program, DISK, 0x14, 0xFFFFFFFF)
    size_high = cf8(program, DISK, 0x14)
    with TinyMachine(tmp_path, program.power_off()) as tiny:
        original = tiny.machine.virtio[1].bar.value
        assert tiny.run().kind == "shutdown"
        found = tiny.results(program)
    assert found[before] & ~0xF | found[high] << 32 == original
    assert ~(found[size] & ~0xF) + 1 & 0xFFFFFFFF in (BAR_SIZE, 0)
    assert found[size_high] in (0xFFFFFFFF, found[high])


def move(program: Program, slot: int, gpa: int) -> None:
    cf8_write(program, slot, 0x10, gpa & 0xFFFFFFFF)
    cf8_write(program, slot, 0x14, gpa >> 32)


def test_bar_moves_and_its_registers_follow(tmp_path):
    program = Program()
    move(program, DISK, LOW_A)
    at_a = program.read(LOW_A + NUM_QUEUES, 2)
    move(program, DISK, LOW_B)
    at_b = program.read(LOW_B + NUM_QUEUES, 2)
    left = program.read(LOW_A + NUM_QUEUES, 2)
    cf8_write(program, DISK, 4, 0, 2)
    off = program.read(LOW_B + NUM_QUEUES, 2)
    cf8_write(program, DISK, 4, 2, 2)
    on = program.read(LOW_B + NUM_QUEUES, 2)
    found = results(tmp_path, program)
    assert found[at_a] == found[at_b] == found[on] == 1
    assert found[left] == found[off] == 0xFFFF


@pytest.mark.parametrize("where", [0x100000, 0xFEE00000, ECAM_GPA, 0xFFFFFFFF_F0000000])
def test_bar_is_not_moved_onto_ram_or_the_platform(tmp_path, where):
    program = Program()
    move(program, DISK, LOW_A)
    move(program, DISK, where)
    still = program.read(LOW_A + NUM_QUEUES, 2)
    assert results(tmp_path, program)[still] == 1


def test_bars_do_not_overlap(tmp_path):
    program = Program()
    move(program, DISK, LOW_A)
    move(program, CONSOLE, LOW_A)
    queues = program.read(LOW_A + NUM_QUEUES, 2)
    assert results(tmp_path, program)[queues] == 1


@pytest.mark.parametrize("upper_first", [True, False])
@pytest.mark.parametrize("slot", [CONSOLE, RNG])
def test_a_64_bit_bar_moves_with_decoding_on(tmp_path, slot, upper_first):
    program = Program()
    halves = [(0x10, LOW_A), (0x14, 0)]
    for register, value in reversed(halves) if upper_first else halves:
        cf8_write(program, slot, register, value)
    low, high = cf8(program, slot, 0x10), cf8(program, slot, 0x14)
    queues = program.read(LOW_A + NUM_QUEUES, 2)
    found = results(tmp_path, program)
    assert found[low] & ~0xF | found[high] << 32 == LOW_A
    assert found[queues] == {CONSOLE: 2, RNG: 1}[slot]


def test_a_bar_follows_when_another_leaves_its_place(tmp_path):
    program = Program()
    move(program, DISK, LOW_A)
    move(program, RNG, LOW_A)
    kept = cf8(program, RNG, 0x10)
    move(program, CONSOLE, LOW_B)
    before = program.read(LOW_A + DEVICE_STATUS, 4)
    move(program, DISK, LOW_B)  # the console is there
    program.write(LOW_A + DEVICE_STATUS, 1, 1)
    cf8_write(program, CONSOLE, 4, 0, 2)
    identity = [program.read(gpa + NUM_QUEUES, 2) for gpa in (LOW_A, LOW_B)]
    with TinyMachine(tmp_path, program.power_off(), CPU_COUNT=2) as tiny:
        assert tiny.run().kind == "shutdown"
        found = tiny.results(program)
        where = [tiny.machine.virtio[slot - 1].bar.mapped for slot in (CONSOLE, DISK, RNG)]
    assert where == [None, LOW_B, LOW_A]
    assert found[kept] & ~0xF == LOW_A
    assert found[before] == 0
    assert [found[n] for n in identity] == [1, 2]


def test_device_reset_again_and_again(tmp_path):
    program = Program()
    move(program, DISK, LOW_A)
    for _ in range(50):
        program.write(LOW_A + 0x14, 1, 1).write(LOW_A + 0x14, 3, 1).write(LOW_A + 0x14, 0, 1)
    status = program.read(LOW_A + 0x14, 1)
    assert results(tmp_path, program)[status] == 0


def test_nonsense_written_over_a_whole_bar(tmp_path):
    """Every register of a device, written with ones: the VMM stays up, the device can be reset."""
    program = Program()
    move(program, DISK, LOW_A)
    for offset in [
        *range(0, 0x40, 4),
        0x2000,
        0x4000,
        0x6000,
        0x6FFC,
        0x8000,
        0x800C,
        0x48000,
        0x7FFFC,
    ]:
        program.write(LOW_A + offset, 0xFFFFFFFF)
        program.read(LOW_A + offset)
    program.write(LOW_A + 0x14, 0, 1)
    status = program.read(LOW_A + 0x14, 1)
    assert results(tmp_path, program)[status] == 0
