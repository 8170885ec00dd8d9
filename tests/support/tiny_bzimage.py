"""A kernel of a few bytes in Linux's bzImage format, for firmwares to load.

Source: Documentation/arch/x86/boot.rst (protocol 2.12, relocatable, 64-bit entry).
"""

from __future__ import annotations

import struct

SECTOR = 512
SETUP_SECTORS = 1
ENTRY_64 = 0x200
# Prints the command line of its boot_params (rsi) on COM1, then powers off.
TELL_CMDLINE = bytes.fromhex(
    "8b8628020000 89c3"  # mov eax, [rsi + 0x228]; mov ebx, eax
    "66baf803 8a03 84c0 7406 ee 48ffc3 ebf4"  # mov dx, 0x3f8; each byte of it to the port
    "b00a ee"  # a new line
    "66ba0006 b034 ee f4"
)


def build_bzimage(code: bytes = TELL_CMDLINE, changes: dict[int, bytes] | None = None) -> bytes:
    """A bzImage whose 64-bit entry runs ``code``; ``changes`` of header fields by offset."""
    setup = bytearray(SECTOR * (1 + SETUP_SECTORS))
    payload = bytes(ENTRY_64) + code
    payload += bytes(-len(payload) % SECTOR)
    fields = {
        0x1F1: struct.pack("<B", SETUP_SECTORS),
        0x1F4: struct.pack("<I", len(payload) // 16),
        0x1FE: b"\x55\xaa",
        0x200: b"\xeb\x66",
        0x202: b"HdrS",
        0x206: struct.pack("<H", 0x20C),
        0x211: b"\x01",  # LOADED_HIGH
        0x214: struct.pack("<I", 0x100000),
        0x22C: struct.pack("<I", 0x7FFFFFFF),
        0x230: struct.pack("<I", 0x200000),
        0x234: b"\x01",  # relocatable
        0x235: b"\x15",
        0x236: struct.pack("<H", 1),  # XLF_KERNEL_64
        0x238: struct.pack("<I", 2047),
        0x258: struct.pack("<Q", 0x1000000),
        0x260: struct.pack("<I", 0x100000),
    }
    for offset, value in {**fields, **(changes or {})}.items():
        setup[offset : offset + len(value)] = value
    return bytes(setup) + payload
