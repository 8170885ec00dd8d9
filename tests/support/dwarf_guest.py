"""Compiles the guest whose DWARF a debugger reads."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tests.support.elf_builder import LOAD_GPA

SOURCE = Path(__file__).with_name("dwarf_guest.c")
LAYOUT = f"""
PHDRS {{ all PT_LOAD FLAGS(7); pvh PT_NOTE FLAGS(4); }}
SECTIONS {{
  . = {LOAD_GPA:#x};
  .text : {{ *(.text*) }} :all
  .data : {{ *(.rodata*) *(.data*) *(.bss*) }} :all
  .note.pvh : {{ *(.note.pvh) }} :all :pvh
  /DISCARD/ : {{ *(.comment) *(.eh_frame) *(.note.gnu*) *(.note.GNU*) }}
}}
"""
WORDS = (
    "-g", "-O0", "-Wall", "-Wextra", "-Werror", "-ffreestanding", "-nostdlib", "-static", "-no-pie",
    "-fno-pie", "-fcf-protection=none", "-fno-stack-protector", "-mno-red-zone",
    "-mgeneral-regs-only", "-fno-asynchronous-unwind-tables", "-Wl,--build-id=none",
    "-Wl,--no-warn-rwx-segments",
)  # fmt: skip


def dwarf_guest(folder: Path) -> Path:
    """An ELF that begins at LOAD_GPA in 64-bit code."""
    layout, kernel = folder / "guest.ld", folder / "dwarf.elf"
    layout.write_text(LAYOUT)
    subprocess.run(["gcc", *WORDS, "-o", kernel, SOURCE, f"-Wl,-T,{layout}"], check=True)
    return kernel


def line_of(mark: str) -> int:
    """The number of the source's line with ``/* line: mark */``."""
    lines = SOURCE.read_text().splitlines()
    return 1 + next(n for n, line in enumerate(lines) if re.search(rf"/\* line: {mark} \*/", line))
