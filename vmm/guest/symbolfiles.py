"""Symbols in files: the symbol table of an ELF kernel, and System.map.

The control thread may wait for the name of one address, so there each symbol is looked at once and
only the nearest one gets a name: 100,000 take some 20 ms. Source: System V ABI, chapter 4 (symbol
table); nm(1) for System.map.
"""

from __future__ import annotations

import os
import struct

from vmm.light.record import Record
from vmm.light.regular import open_regular

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    # Address, letter as in nm(1), name, size in bytes (0: not known).
    Row = tuple[int, str, str, int]

ELF_MAGIC = b"\x7fELF"
IDENT_BYTES = 16
CLASS = 4
PT_LOAD = 1
SHT_SYMTAB = 2
# STT_NOTYPE, STT_OBJECT and STT_FUNC; the letters of nm(1).
NOTYPE, OBJECT, FUNC = 0, 1, 2
CODE_TYPES = (NOTYPE, FUNC)
CODE_LETTERS = "tTwW"
LETTERS = {NOTYPE: "n", OBJECT: "d", FUNC: "t"}
STB_LOCAL = 0
SHN_UNDEF = 0
# A damaged file shall not keep anybody waiting: more than any kernel has.
HEADERS_MAX = 4096
TABLE_BYTES_MAX = 48 << 20
NAME_BYTES_MAX = 512


class _Form(Record):
    """The structures of one ELF class, and where in each what we read stands.

    Fields of ``header``: offsets of program and section headers, their numbers. ``segment``: type,
    vaddr, paddr, memsz. ``section``: type, offset, size, link. ``symbol``: name, info, value, size,
    section.
    """

    __slots__ = ("header", "section", "segment", "symbol")
    header: tuple[struct.Struct, tuple[int, ...]]
    segment: tuple[struct.Struct, tuple[int, ...]]
    section: tuple[struct.Struct, tuple[int, ...]]
    symbol: tuple[struct.Struct, tuple[int, ...]]


def _form(bits: int) -> _Form:
    form = _Form()
    if bits == 64:
        form._set(
            header=(struct.Struct("<16xHHIQQQIHHHHHH"), (4, 5, 9, 11)),
            segment=(struct.Struct("<IIQQQQQQ"), (0, 3, 4, 6)),
            section=(struct.Struct("<IIQQQQIIQQ"), (1, 4, 5, 6)),
            symbol=(struct.Struct("<IBBHQQ"), (0, 1, 4, 5, 3)),
        )
    else:
        form._set(
            header=(struct.Struct("<16xHHIIIIIHHHHHH"), (4, 5, 9, 11)),
            segment=(struct.Struct("<IIIIIIII"), (0, 2, 3, 5)),
            section=(struct.Struct("<IIIIIIIIII"), (1, 4, 5, 6)),
            symbol=(struct.Struct("<IIIBBH"), (0, 3, 1, 2, 5)),
        )
    return form


def is_elf(path: str) -> bool:
    """Whether a file begins as an ELF file; OSError when it cannot be read."""
    with open(open_regular(path), "rb") as file:
        return file.read(len(ELF_MAGIC)) == ELF_MAGIC


def map_path(kernel_path: str) -> str | None:
    """The System.map beside a vmlinuz; None without one."""
    folder, name = os.path.split(kernel_path)
    path = os.path.join(folder, name.replace("vmlinuz", "System.map", 1))
    return path if path != kernel_path and os.path.exists(path) else None


def nearest_in_elf(path: str, address: int) -> tuple[int, str, int]:
    """(value, name, address as the symbols have it) of the last code symbol up to ``address``.

    A physical address counts as its segment's virtual one. The value is -1 without a symbol;
    OSError, ValueError, IndexError, OverflowError or struct.error for a damaged file.
    """
    fd = open_regular(path)
    try:
        form, loads, sections = _headers(fd)
        address = _linked(loads, address)
        for kind, offset, size, link in sections:
            if kind == SHT_SYMTAB:
                value, name = _nearest_of_table(_read(fd, offset, size), form, address)
                _, names_at, names_size, _ = sections[link]
                text = os.pread(fd, min(NAME_BYTES_MAX, max(0, names_size - name)), names_at + name)
                return value, text.partition(b"\0")[0].decode("ascii", "replace"), address
        return -1, "", address
    finally:
        os.close(fd)


def nearest_in_map(path: str, address: int) -> tuple[int, str]:
    """(value, name) of the last code symbol up to ``address``; -1 without one."""
    best = (-1, "")
    for value, letter, name, _ in map_rows(path):
        if best[0] < value <= address and letter in CODE_LETTERS:
            best = (value, name)
    return best


def elf_rows(path: str) -> list[Row]:
    """Functions, objects and labels of an ELF file that has a symbol table, as they stand in it.

    OSError, ValueError, IndexError, OverflowError or struct.error for a damaged file.
    """
    fd = open_regular(path)
    try:
        form, _, sections = _headers(fd)
        for kind, offset, size, link in sections:
            if kind == SHT_SYMTAB:
                _, names_at, names_size, _ = sections[link]
                return list(_rows(_read(fd, offset, size), _read(fd, names_at, names_size), form))
        return []
    finally:
        os.close(fd)


def map_rows(path: str) -> Iterator[Row]:
    """The lines of a System.map; OSError, or ValueError for a line with a bad address."""
    if os.stat(path).st_size > TABLE_BYTES_MAX:
        raise ValueError(f"{path} has more than {TABLE_BYTES_MAX} bytes")
    with open(open_regular(path), encoding="ascii", errors="replace") as file:
        for line in file:
            fields = line.split()
            if len(fields) == 3:
                yield int(fields[0], 16), fields[1], fields[2], 0


def _headers(fd: int) -> tuple[_Form, list[tuple[int, ...]], list[tuple[int, ...]]]:
    """The form, what we read of the segments and of the sections."""
    form = _form(64 if os.pread(fd, IDENT_BYTES, 0)[CLASS] == 2 else 32)
    code, places = form.header
    fields = code.unpack(os.pread(fd, code.size, 0))
    segments_at, sections_at, segment_count, section_count = [fields[n] for n in places]
    loads = list(_table(fd, form.segment, segments_at, segment_count))
    return form, loads, list(_table(fd, form.section, sections_at, section_count))


def _rows(data: bytes, names: bytes, form: _Form) -> Iterator[Row]:
    code, (name, info, value, size, section) = form.symbol
    for fields in code.iter_unpack(data[: len(data) // code.size * code.size]):
        letter = LETTERS.get(fields[info] & 15)
        if letter is None or fields[section] == SHN_UNDEF or not fields[name]:
            continue
        begin = fields[name]
        end = names.find(b"\0", begin, begin + NAME_BYTES_MAX)
        text = names[begin : end if end >= 0 else begin + NAME_BYTES_MAX].decode("ascii", "replace")
        if fields[info] >> 4 != STB_LOCAL:
            letter = letter.upper()
        yield fields[value], letter, text, fields[size]


def _table(
    fd: int, form: tuple[struct.Struct, tuple[int, ...]], offset: int, count: int
) -> Iterator[tuple[int, ...]]:
    """What we read of each of ``count`` headers."""
    code, places = form
    for fields in code.iter_unpack(_read(fd, offset, code.size * min(count, HEADERS_MAX))):
        yield tuple([fields[n] for n in places])


def _read(fd: int, offset: int, size: int) -> bytes:
    if size > TABLE_BYTES_MAX:
        raise ValueError(f"a table of {size} bytes")
    return os.pread(fd, size, offset)


def _linked(segments: Iterable[tuple[int, ...]], address: int) -> int:
    """The address as the symbols have it: a physical one becomes its segment's virtual one."""
    loads = [fields[1:] for fields in segments if fields[0] == PT_LOAD]
    if any(vaddr <= address < vaddr + size for vaddr, _, size in loads):
        return address
    for vaddr, paddr, size in loads:
        if paddr <= address < paddr + size:
            return address - paddr + vaddr
    return address


def _nearest_of_table(data: bytes, form: _Form, address: int) -> tuple[int, int]:
    """(value, place of the name) of the last code symbol up to ``address``; -1 without one."""
    code, (name, info, value, _, _) = form.symbol
    best, best_name = -1, 0
    for fields in code.iter_unpack(data[: len(data) // code.size * code.size]):
        if best < fields[value] <= address and fields[name] and fields[info] & 15 in CODE_TYPES:
            best, best_name = fields[value], fields[name]
    return best, best_name
