"""Builds small ELF files, right and wrong ones, for the loaders and as tiny PVH guests."""

from __future__ import annotations

import struct

XEN_NOTE_TYPE = 18
LOAD_GPA = 0x100000
CODE_OFFSET = 0x1000


def xen_note(entry: int, size: int = 4, name: bytes = b"Xen\0", kind: int = XEN_NOTE_TYPE) -> bytes:
    return struct.pack("<III", len(name), size, kind) + name + entry.to_bytes(size, "little")


def build_elf(
    code: bytes,
    *,
    bits: int = 64,
    gpa: int = LOAD_GPA,
    entry: int | None = None,
    note: bytes | None = None,
    bss: int = 0,
    machine: int | None = None,
    note_align: int = 4,
    notes_at_end: bytes = b"",
    loads: tuple[tuple[int, int], ...] = (),
) -> bytes:
    """An ELF with one PT_LOAD (``code`` at ``gpa``, ``bss`` bytes behind) and one PT_NOTE.

    ``notes_at_end`` stand behind the code, where there is room for megabytes of them; ``loads``
    are (gpa, size) of more segments without bytes in the file.
    """
    entry = gpa if entry is None else entry
    note = xen_note(entry) if note is None else note
    machine = machine or (62 if bits == 64 else 3)
    note_offset = 0x200
    note_size = len(note)
    if notes_at_end:
        note_offset, note_size = CODE_OFFSET + len(code), len(notes_at_end)
    count = 2 + len(loads)
    if bits == 64:
        ident = b"\x7fELF\x02\x01\x01" + bytes(9)
        head = ident + struct.pack(
            "<HHIQQQIHHHHHH", 2, machine, 1, entry, 64, 0, 0, 64, 56, count, 0, 0, 0
        )
        load = struct.pack(
            "<IIQQQQQQ", 1, 7, CODE_OFFSET, gpa, gpa, len(code), len(code) + bss, 0x1000
        )
        notes = struct.pack("<IIQQQQQQ", 4, 4, note_offset, 0, 0, note_size, note_size, note_align)
        for more, size in loads:
            notes += struct.pack("<IIQQQQQQ", 1, 7, 0, more, more, 0, size, 0x1000)
    else:
        ident = b"\x7fELF\x01\x01\x01" + bytes(9)
        head = ident + struct.pack(
            "<HHIIIIIHHHHHH", 2, machine, 1, entry, 52, 0, 0, 52, 32, count, 0, 0, 0
        )
        load = struct.pack(
            "<IIIIIIII", 1, CODE_OFFSET, gpa, gpa, len(code), len(code) + bss, 7, 0x1000
        )
        notes = struct.pack("<IIIIIIII", 4, note_offset, 0, 0, note_size, note_size, 4, note_align)
    image = bytearray(CODE_OFFSET)
    start = head + load + notes
    image[: len(start)] = start
    if not notes_at_end:
        image[note_offset : note_offset + len(note)] = note
    return bytes(image) + code + notes_at_end


def aligned_note(entry: int, align: int) -> bytes:
    """A PVH note whose parts are aligned as a segment with this p_align has them."""
    start = -(-(12 + 4) // align) * align
    note = struct.pack("<III", 4, 8, XEN_NOTE_TYPE) + b"Xen\0"
    note = note.ljust(start, b"\0") + entry.to_bytes(8, "little")
    return note.ljust(-(-len(note) // align) * align, b"\0")


def other_note(size: int, align: int = 4) -> bytes:
    """A note of somebody else's, to stand before ours: GNU, a build id of ``size`` bytes."""
    start = -(-(12 + 4) // align) * align
    note = (struct.pack("<III", 4, size, 3) + b"GNU\0").ljust(start, b"\0") + bytes(size)
    return note.ljust(-(-len(note) // align) * align, b"\0")


def with_symbols(image: bytes, symbols: dict[str, int]) -> bytes:
    """A 64-bit ELF of build_elf() with a symbol table: global functions by their addresses."""
    names, table = b"\0", bytes(24)
    for name, address in symbols.items():
        # st_info: global, function; section 1, as if it were there.
        table += struct.pack("<IBBHQQ", len(names), 1 << 4 | 2, 0, 1, address, 0)
        names += name.encode() + b"\0"
    table_at, names_at = len(image), len(image) + len(table)
    sections = bytes(64)
    sections += struct.pack("<IIQQQQIIQQ", 0, 2, 0, 0, table_at, len(table), 2, 1, 8, 24)
    sections += struct.pack("<IIQQQQIIQQ", 0, 3, 0, 0, names_at, len(names), 0, 0, 1, 0)
    out = bytearray(image + table + names + sections)
    struct.pack_into("<Q", out, 40, names_at + len(names))  # e_shoff
    struct.pack_into("<HHH", out, 58, 64, 3, 2)  # e_shentsize, e_shnum, e_shstrndx
    return bytes(out)
