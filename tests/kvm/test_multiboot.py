"""A Multiboot kernel starts with the registers, tables and command line that the spec names."""

from __future__ import annotations

import struct
import time

import pytest

import vmm
from tests.lab.guests.packages import unpacked
from tests.support.guest_asm import RESULT_GPA, Program
from tests.support.multiboot_elf import multiboot_elf
from tests.support.pit import Pit
from tests.support.speed import patience

WORDS = "kernel words=1"
SCREEN_GPA, COLUMNS, ROWS = 0xB8000, 80, 25


def test_a_kernel_sees_what_the_specification_says(tmp_path):
    """eax, ebx and what the kernel itself reads through ebx: flags, and its command line."""
    program = Program()
    program.code = bytearray(b"\xa3" + struct.pack("<I", RESULT_GPA))  # mov [result], eax
    program.code += b"\x89\x1d" + struct.pack("<I", RESULT_GPA + 8)  # mov [result + 8], ebx
    program.code += b"\x8b\x03\xa3" + struct.pack("<I", RESULT_GPA + 16)  # mov eax, [ebx]; store
    program.code += b"\x8b\x73\x10\xbf" + struct.pack("<I", RESULT_GPA + 32)  # esi: cmdline; edi
    program.code += b"\xb9" + struct.pack("<I", len(WORDS) + 1) + b"\xfc\xf3\xa4"  # rep movsb
    program.power_off()
    kernel = tmp_path / "guest.elf"
    kernel.write_bytes(multiboot_elf(bytes(program.code)))
    with vmm.Guest(kernel=kernel, memory="16M", cmdline=WORDS) as guest:
        assert guest.run(seconds=20).kind == "ended"
        eax, ebx, flags = struct.unpack("<3Q", guest.memory.read(RESULT_GPA, 24))
        assert (eax, ebx, flags & 0x45) == (0x2BADB002, 0x6000, 0x45)
        assert guest.memory.read(RESULT_GPA + 32, len(WORDS) + 1) == WORDS.encode() + b"\0"


def screen(guest: vmm.Guest) -> list[str]:
    """The rows of a VGA's text mode, which are RAM here."""
    cells = guest.memory.read(SCREEN_GPA, 2 * COLUMNS * ROWS)[::2].replace(b"\0", b" ")
    return [cells[COLUMNS * row :][:COLUMNS].decode("latin-1") for row in range(ROWS)]


@pytest.mark.full
def test_somebody_elses_kernel_and_a_timer_from_a_script():
    """Debian's grub-invaders: it draws, and moves when the 8254 that it polls is there."""
    kernel = unpacked("grub-invaders") / "boot/invaders.exec"
    with vmm.Guest(kernel=kernel, memory="16M", cmdline="invaders") as guest:
        Pit(guest)
        seen = set()
        deadline = time.monotonic() + patience(30)
        while len(seen) < 3 and time.monotonic() < deadline:
            stop = guest.run(seconds=0.3)
            assert stop.kind == "timeout", stop
            rows = screen(guest)
            seen.add(tuple(rows[:12]))
        assert len(seen) >= 3
        assert sum(row.count("-*") for row in rows) >= 20, rows
        assert any("/ \\" in row for row in rows), rows
