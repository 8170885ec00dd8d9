"""What Linux says of itself for readers of a dump (VMCOREINFO), found in guest RAM.

The kernel keeps it as a finished ELF note: symbols, offsets, and where KASLR put it. It is the
guest's: its size is bounded and its form checked, and no line of it is acted on here.
Source: kernel/vmcore_info.c (kernel/crash_core.c before 6.9); include/linux/crash_core.h.
"""

from __future__ import annotations

import struct

from vmm.guest import pagetables
from vmm.guest.kernelimage import search

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmm.guest.pagetables import Memory, Paging
    from vmm.guest.symbols import Symbols

NAME = b"VMCOREINFO"
# The note's header: sizes of name and content, type; then the name, padded to 4 bytes.
HEADER = struct.Struct("<III12s")
PADDED_NAME = NAME + b"\0\0"
BEGIN = b"OSRELEASE="
# The kernel gives it a page; more is no such note.
BYTES_MAX = 4096
HITS_MAX = 16


def find_vmcoreinfo(
    memory: Memory, paging: Paging | None = None, symbols: Symbols | None = None
) -> bytes | None:
    """The text of the note; None where no Linux has made one (yet).

    With ``paging`` and ``symbols`` the kernel's own pointer leads there, else all RAM is searched.
    """
    if paging is not None and symbols is not None:
        found = _by_pointer(memory, paging, symbols.get("vmcoreinfo_note"))
        if found is not None:
            return found
    places = search(memory, PADDED_NAME + BEGIN)
    for gpa, _ in zip(places, range(HITS_MAX), strict=False):
        try:
            note = memory.read(gpa - HEADER.size + len(PADDED_NAME), HEADER.size + BYTES_MAX)
        except ValueError:
            continue
        if found := text_of(note):
            return found
    return None


def _by_pointer(memory: Memory, paging: Paging, pointer: int | None) -> bytes | None:
    if pointer is None:
        return None
    try:
        gva = int.from_bytes(pagetables.read(memory, paging, pointer, 8), "little")
        return text_of(pagetables.read(memory, paging, gva, BYTES_MAX))
    except ValueError:
        return None


def text_of(note: bytes) -> bytes | None:
    """The text in a note that begins these bytes; None when it is not such a note."""
    if len(note) < HEADER.size:
        return None
    name_size, size, kind, name = HEADER.unpack_from(note)
    text = note[HEADER.size : HEADER.size + size]
    right = (name_size, kind, name) == (len(NAME) + 1, 0, PADDED_NAME)
    if not right or len(text) != size or size > BYTES_MAX or not text.startswith(BEGIN):
        return None
    return text if text.isascii() else None
