"""Names for guest code addresses: from the kernel's own ELF symbols, or the System.map beside it.

Source: System V ABI, chapter 4 (symbol table); nm(1) for System.map.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from elftools.elf.elffile import ELFFile

# Symbols further away than this say nothing about an address.
REACH_BYTES = 1 << 20
ELF_MAGIC = b"\x7fELF"
CODE_TYPES = ("STT_FUNC", "STT_NOTYPE")
CODE_LETTERS = "tTwW"


def symbol_at(kernel_path: str, address: int) -> str | None:
    """``name+0x12`` for a linear or (before paging) physical address; None when not known.

    A bzImage's System.map holds for a kernel that runs where it was linked (``nokaslr``).
    """
    try:
        with open(kernel_path, "rb") as file:
            if file.read(4) != ELF_MAGIC:
                return _nearest(_map_symbols(kernel_path), address)
            return _elf_symbol(kernel_path, address)
    except (OSError, ValueError):
        return None


def _elf_symbol(path: str, address: int) -> str | None:
    from elftools.elf.elffile import ELFFile

    try:
        with open(path, "rb") as stream:
            elf = ELFFile(stream)
            return _nearest(_elf_symbols(elf), _linked(elf, address))
    except Exception:  # a damaged file makes the parser fail in any of its layers
        return None


def _linked(elf: ELFFile, address: int) -> int:
    """The address as the symbols have it: a physical one becomes its segment's virtual one."""
    loads = [segment for segment in elf.iter_segments() if segment["p_type"] == "PT_LOAD"]
    if any(s["p_vaddr"] <= address < s["p_vaddr"] + s["p_memsz"] for s in loads):
        return address
    for s in loads:
        if s["p_paddr"] <= address < s["p_paddr"] + s["p_memsz"]:
            return int(address - s["p_paddr"] + s["p_vaddr"])
    return address


def _elf_symbols(elf: ELFFile) -> Iterable[tuple[int, str]]:
    from elftools.elf.sections import SymbolTableSection

    table = elf.get_section_by_name(".symtab")
    if not isinstance(table, SymbolTableSection):
        return
    for symbol in table.iter_symbols():
        if symbol.name and symbol["st_info"]["type"] in CODE_TYPES:
            yield symbol["st_value"], symbol.name


def _map_symbols(kernel_path: str) -> Iterable[tuple[int, str]]:
    folder, name = os.path.split(kernel_path)
    path = os.path.join(folder, name.replace("vmlinuz", "System.map", 1))
    if path == kernel_path:
        return
    with open(path, encoding="ascii", errors="replace") as file:
        for line in file:
            fields = line.split()
            if len(fields) == 3 and fields[1] in CODE_LETTERS:
                yield int(fields[0], 16), fields[2]


def _nearest(symbols: Iterable[tuple[int, str]], address: int) -> str | None:
    best = (-1, "")
    for value, name in symbols:
        if best[0] < value <= address:
            best = (value, name)
    offset = address - best[0]
    if best[0] < 0 or offset > REACH_BYTES:
        return None
    return f"{best[1]}+{offset:#x}" if offset else best[1]
