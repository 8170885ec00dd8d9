"""Names for guest code addresses: from the kernel's own ELF symbols, or the System.map beside it.

The control thread waits for the answer, so each symbol is looked at once and only the nearest one
gets a name: 100,000 take some 20 ms. Source: System V ABI, chapter 4 (symbol table); nm(1) for
System.map.
"""

from __future__ import annotations

import os
import struct

from vmm.light.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# Symbols further away than this say nothing about an address.
REACH_BYTES = 1 << 20
ELF_MAGIC = b"\x7fELF"
IDENT_BYTES = 16
CLASS = 4
PT_LOAD = 1
SHT_SYMTAB = 2
# STT_NOTYPE and STT_FUNC.
CODE_TYPES = (0, 2)
CODE_LETTERS = "tTwW"
# A damaged file shall not keep anybody waiting: more than any kernel has.
HEADERS_MAX = 4096
TABLE_BYTES_MAX = 48 << 20
NAME_BYTES_MAX = 512


class _Form(Record):
    """The structures of one ELF class, and where in each what we read stands.

    Fields of ``header``: offsets of program and section headers, their numbers. ``segment``: type,
    vaddr, paddr, memsz. ``section``: type, offset, size, link. ``symbol``: name, info, value.
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
            symbol=(struct.Struct("<IBBHQQ"), (0, 1, 4)),
        )
    else:
        form._set(
            header=(struct.Struct("<16xHHIIIIIHHHHHH"), (4, 5, 9, 11)),
            segment=(struct.Struct("<IIIIIIII"), (0, 2, 3, 5)),
            section=(struct.Struct("<IIIIIIIIII"), (1, 4, 5, 6)),
            symbol=(struct.Struct("<IIIBBH"), (0, 3, 1)),
        )
    return form


def symbol_at(kernel_path: str, address: int) -> str | None:
    """``name+0x12`` for a linear or (before paging) physical address; None when not known.

    A bzImage's System.map holds for a kernel that runs where it was linked (``nokaslr``).
    """
    try:
        fd = os.open(kernel_path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            ident = os.pread(fd, IDENT_BYTES, 0)
            if ident[: len(ELF_MAGIC)] == ELF_MAGIC:
                return _elf_symbol(fd, _form(64 if ident[CLASS] == 2 else 32), address)
        finally:
            os.close(fd)
        return _text(*_nearest(_map_symbols(kernel_path), address), address)
    except (OSError, ValueError, IndexError, OverflowError, struct.error):
        return None  # no such file, or a damaged one


def _elf_symbol(fd: int, form: _Form, address: int) -> str | None:
    code, places = form.header
    fields = code.unpack(os.pread(fd, code.size, 0))
    segments_at, sections_at, segment_count, section_count = [fields[n] for n in places]
    address = _linked(_table(fd, form.segment, segments_at, segment_count), address)
    sections = list(_table(fd, form.section, sections_at, section_count))
    for kind, offset, size, link in sections:
        if kind == SHT_SYMTAB:
            value, name = _nearest_of_table(_read(fd, offset, size), form, address)
            _, names_at, names_size, _ = sections[link]
            text = os.pread(fd, min(NAME_BYTES_MAX, max(0, names_size - name)), names_at + name)
            return _text(value, text.partition(b"\0")[0].decode("ascii", "replace"), address)
    return None


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
    code, (name, info, value) = form.symbol
    best, best_name = -1, 0
    for fields in code.iter_unpack(data[: len(data) // code.size * code.size]):
        if best < fields[value] <= address and fields[name] and fields[info] & 15 in CODE_TYPES:
            best, best_name = fields[value], fields[name]
    return best, best_name


def _map_symbols(kernel_path: str) -> Iterable[tuple[int, str]]:
    folder, name = os.path.split(kernel_path)
    path = os.path.join(folder, name.replace("vmlinuz", "System.map", 1))
    if path == kernel_path or os.stat(path).st_size > TABLE_BYTES_MAX:
        return
    with open(path, encoding="ascii", errors="replace") as file:
        for line in file:
            fields = line.split()
            if len(fields) == 3 and fields[1] in CODE_LETTERS:
                yield int(fields[0], 16), fields[2]


def _nearest(symbols: Iterable[tuple[int, str]], address: int) -> tuple[int, str]:
    best = (-1, "")
    for value, name in symbols:
        if best[0] < value <= address:
            best = (value, name)
    return best


def _text(value: int, name: str, address: int) -> str | None:
    offset = address - value
    if value < 0 or not name or offset > REACH_BYTES:
        return None
    return f"{name}+{offset:#x}" if offset else name
