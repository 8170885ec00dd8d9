"""A guest that writes 16 pages, counts, and powers itself off; it goes on when it is run again."""

from __future__ import annotations

from pathlib import Path

from tests.support.elf_builder import build_elf
from tests.support.guest_asm import RESULT_GPA, Program
from vmm.debug.guest import Guest

TOUCHED_GPA = 0x300000
PAGES = 16


def counting_code() -> bytes:
    """One round for each run: each of the pages and RESULT_GPA get one more."""
    program = Program()
    start = len(program.code)
    # mov edi, TOUCHED; mov ecx, PAGES; again: inc dword [edi]; add edi, 4096; loop again
    program.raw("bf" + TOUCHED_GPA.to_bytes(4, "little").hex() + f"b9{PAGES:02x}000000")
    program.raw("ff07 81c700100000 e2f6")
    program.raw("ff05" + RESULT_GPA.to_bytes(4, "little").hex())  # inc dword [RESULT_GPA]
    program.out(0x600, 0x34)
    back = start - len(program.code) - 5 & 0xFFFFFFFF
    return bytes(program.raw("e9" + back.to_bytes(4, "little").hex()).code)


def kernel(folder: Path, code: bytes | None = None) -> Path:
    """The guest as an ELF file."""
    path = folder / "guest.elf"
    path.write_bytes(build_elf(code or counting_code()))
    return path


def count(guest: Guest) -> int:
    """How many rounds it made."""
    return int.from_bytes(guest.memory.read(RESULT_GPA, 4), "little")


def rounds(guest: Guest) -> tuple[int, int]:
    """Rounds by both counters, which must agree."""
    page = int.from_bytes(guest.memory.read(TOUCHED_GPA + (PAGES - 1) * 4096, 4), "little")
    return count(guest), page
