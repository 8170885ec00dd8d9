"""What only int3 has: run by test_int3.py, on a KVM that reports it."""

from __future__ import annotations

import struct

import pytest

import vmm
from tests.support.elf_builder import LOAD_GPA
from tests.support.guest_asm import RESULT_GPA, Program
from tests.support.speed import patience
from tests.support.tiny_guest import tiny_guest
from vmm.debug.abilities import ABILITIES

IDT, IDTR, HANDLER = 0x210000, 0x220000, 0x230000
GATE, BREAKPOINT_VECTOR = 0x8E00, 3
# eax: where the #BP says that it goes on; kept, and one more counted; then there, with the flags.
HANDLE = bytes.fromhex("58") + b"\xa3" + struct.pack("<I", RESULT_GPA)
HANDLE += b"\xff\x05" + struct.pack("<I", RESULT_GPA + 4) + bytes.fromhex("5b 9d ffe0")
# lidt; then for ever: inc ecx; int3; inc edx; jmp back
PROGRAM = Program().raw("0f011d00002200")
LOOP = LOAD_GPA + len(PROGRAM.code)
OWN, BEHIND = LOOP + 1, LOOP + 2
PROGRAM.raw("41 cc 42 ebfb")


@pytest.fixture
def guest(tmp_path):
    """One that executes an int3 of its own again and again, and has a handler for it."""
    with tiny_guest(tmp_path, bytes(PROGRAM.code)) as made:
        selector = made.cpus[0].sregs.cs["selector"]
        made.memory.write(IDTR, struct.pack("<HI", 0x7FF, IDT))
        gate = struct.pack("<HHHH", HANDLER & 0xFFFF, selector, GATE, HANDLER >> 16)
        made.memory.write(IDT + 8 * BREAKPOINT_VECTOR, gate)
        made.memory.write(HANDLER, HANDLE)
        yield made


def handled(guest: vmm.Guest) -> tuple[int, int]:
    """Where the newest #BP has gone on, and how many there were."""
    where, count = struct.unpack("<II", guest.memory.read(RESULT_GPA, 8))
    return where, count


def test_it_is_found_out_and_chosen():
    assert ABILITIES.int3


def test_the_guests_own_is_given_back_to_it(guest):
    point = guest.breakpoint(LOOP + 3, hardware=False, condition="rdx == 20")
    assert point.kind == "int3"
    assert guest.run(seconds=patience(20)).where is point
    assert point.hits == 1
    assert handled(guest) == (BEHIND, 20)
    assert guest.cpus[0].regs.rcx == 20
    counters = guest.machine.vcpus[0].loop.counters()
    # Of each round one for its own int3, and for ours a hit and the step off it.
    assert counters["debug"] <= 3 * 20


def test_the_guests_own_under_ours_is_a_hit_and_then_the_guests(guest):
    point = guest.breakpoint(OWN, hardware=False)
    for round in range(5):
        assert guest.run(seconds=patience(20)).where is point
        assert guest.cpus[0].address == OWN
        assert (handled(guest)[1], guest.cpus[0].regs.rdx) == (round, round)
    assert guest.memory.read(LOOP, 5) == bytes(PROGRAM.code[-5:])
    point.remove()
    stop = guest.run(seconds=0.05)
    assert stop.kind == "timeout", stop
    assert handled(guest)[1] > 5


def test_ours_taken_away_by_an_action_is_not_the_guests(guest):
    point = guest.breakpoint(LOOP, lambda cpu: point.remove(), hardware=False)
    assert guest.run(seconds=0.1).kind == "timeout"
    assert point.hits == 1
    where, count = handled(guest)
    assert where == BEHIND
    assert count > 5


def test_gdb_passes_over_the_guests_own(guest):
    from tests.support.gdb import batch

    with guest.gdb("127.0.0.1:0") as server:
        text = batch(
            server.address, f"break *{BEHIND:#x}", "continue", "p/x $pc", "continue", "p $edx",
            f"x/1xb {OWN:#x}",
        )  # fmt: skip
    assert len([line for line in text.splitlines() if line.startswith("Breakpoint 1, ")]) == 2, text
    assert f"$1 = {BEHIND:#x}" in text
    assert "$2 = 1" in text
    assert "0xcc" in text
