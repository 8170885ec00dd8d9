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
) -> bytes:
    """An ELF with one PT_LOAD (``code`` at ``gpa``, ``bss`` bytes behind) and one PT_NOTE."""
    entry = gpa if entry is None else entry
    note = xen_note(entry) if note is None else note
    machine = machine or (62 if bits == 64 else 3)
    note_offset = 0x200
    if bits == 64:
        ident = b"\x7fELF\x02\x01\x01" + bytes(9)
        head = ident + struct.pack(
            "<HHIQQQIHHHHHH", 2, machine, 1, entry, 64, 0, 0, 64, 56, 2, 0, 0, 0
        )
        load = struct.pack(
            "<IIQQQQQQ", 1, 7, CODE_OFFSET, gpa, gpa, len(code), len(code) + bss, 0x1000
        )
        notes = struct.pack("<IIQQQQQQ", 4, 4, note_offset, 0, 0, len(note), len(note), 4)
    else:
        ident = b"\x7fELF\x01\x01\x01" + bytes(9)
        head = ident + struct.pack(
            "<HHIIIIIHHHHHH", 2, machine, 1, entry, 52, 0, 0, 52, 32, 2, 0, 0, 0
        )
        load = struct.pack(
            "<IIIIIIII", 1, CODE_OFFSET, gpa, gpa, len(code), len(code) + bss, 7, 0x1000
        )
        notes = struct.pack("<IIIIIIII", 4, note_offset, 0, 0, len(note), len(note), 4, 4)
    image = bytearray(CODE_OFFSET)
    start = head + load + notes
    image[: len(start)] = start
    image[note_offset : note_offset + len(note)] = note
    return bytes(image) + code
