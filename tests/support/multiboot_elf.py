"""ELF kernels with a Multiboot header and no PVH note."""

from __future__ import annotations

import struct

from tests.support.elf_builder import build_elf

MAGIC = 0x1BADB002


def header(flags: int = 3, checksum: int | None = None) -> bytes:
    """The three words; a checksum that is right unless given."""
    wanted = -(MAGIC + flags) & 0xFFFFFFFF
    return struct.pack("<III", MAGIC, flags, wanted if checksum is None else checksum)


def multiboot_elf(code: bytes, head: bytes | None = None, bits: int = 32) -> bytes:
    """``code`` is the entry; the header stands behind the program headers, where notes would."""
    return build_elf(code, bits=bits, note=header() if head is None else head)
