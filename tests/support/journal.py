"""The guest that keeps a journal (journal_guest.c), and what its disk must have."""

from __future__ import annotations

import re
import struct
import subprocess
from pathlib import Path

from tests.support.dwarf_guest import LAYOUT

SOURCE = Path(__file__).with_name("journal_guest.c")
BLOCKS, BATCH, BLOCK = 64, 4, 4096
IMAGE_BYTES = 1 << 20
WORDS = (
    "-m32", "-march=i386", "-O1", "-Wall", "-Wextra", "-Werror", "-ffreestanding", "-nostdlib",
    "-static", "-no-pie", "-fno-pie", "-fcf-protection=none", "-fno-stack-protector",
    "-mgeneral-regs-only", "-fno-asynchronous-unwind-tables", "-Wl,--build-id=none",
    "-Wl,--no-warn-rwx-segments",
)  # fmt: skip
SAID = re.compile(r"^(r|a|e|v|bad) ([0-9a-f]{8})\r?$", re.MULTILINE)


def journal_guest(folder: Path, rounds: int = 0) -> Path:
    """Its ELF. ``rounds``: of a life that ends with a reset, 0: it goes on for ever."""
    layout, kernel = folder / "journal.ld", folder / f"journal{rounds}.elf"
    layout.write_text(LAYOUT)
    subprocess.run(
        ["gcc", *WORDS, f"-DROUNDS={rounds}", "-o", kernel, SOURCE, f"-Wl,-T,{layout}"], check=True
    )
    return kernel


def said(text: str) -> list[tuple[str, int]]:
    """The guest's whole lines: (word, number)."""
    return [(word, int(number, 16)) for word, number in SAID.findall(text)]


def acknowledged(text: str) -> int:
    """The last record that a flush has acknowledged."""
    return max([number for word, number in said(text) if word == "a"], default=0)


def block_number(block: bytes) -> int:
    """The record that a block is all of; 0: it is of several."""
    words = [
        struct.unpack_from("<I", block, at + end) for at in range(0, BLOCK, 512) for end in (0, 508)
    ]
    return int(words[0][0]) if len(set(words)) == 1 else 0


def lost(image: bytes, last: int) -> list[int]:
    """Acknowledged records of the image that are not there, with ``last`` as the last one known.

    The guest may have been ahead of what it had said. A block has its record or one that is
    younger; what was under way, a batch behind the youngest, may be torn.
    """
    numbers = [block_number(image[at : at + BLOCK]) for at in range(0, BLOCKS * BLOCK, BLOCK)]
    youngest = max(numbers)
    missing = []
    for number in range(max(1, last - BLOCKS + 1), last + 1):
        found = numbers[number % BLOCKS]
        under_way = [n for n in range(youngest - BATCH + 1, youngest + BATCH + 1) if n > last]
        torn = not found and number % BLOCKS in [n % BLOCKS for n in under_way]
        if not torn and (found < number or found % BLOCKS != number % BLOCKS):
            missing.append(number)
    return missing
