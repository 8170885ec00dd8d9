"""A vmm.Guest around a tiny program."""

from __future__ import annotations

import struct
from pathlib import Path

import vmm
from tests.support.elf_builder import LOAD_GPA, build_elf
from tests.support.guest_asm import RESULT_GPA, Program

# mov eax, 0; then for ever: inc eax; jmp back
COUNT = bytes.fromhex("b800000000 83c001 ebfb")
LOOP = LOAD_GPA + 5
JUMP = LOAD_GPA + 8


def tiny_guest(folder: Path, code: bytes, **settings: object) -> vmm.Guest:
    """Standing at the first instruction of ``code``; 16 MiB of RAM."""
    kernel = folder / "guest.elf"
    kernel.write_bytes(build_elf(code))
    return vmm.Guest(kernel=kernel, **{"memory": "16M", **settings})


def results(guest: vmm.Guest, program: Program) -> list[int]:
    """What the program has read."""
    data = guest.memory.read(RESULT_GPA, 8 * max(program.reads, 1))
    return list(struct.unpack(f"<{len(data) // 8}Q", data))[: program.reads]
