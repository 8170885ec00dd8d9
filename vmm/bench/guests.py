"""The tiny guests: PVH ELF files that any VMM boots which boots a kernel's ELF by PVH.

Their code stands in guestcode.py, made from the sources in benchmarks/guests.
Source of the note: xen/include/public/elfnote.h, XEN_ELFNOTE_PHYS32_ENTRY.
"""

from __future__ import annotations

import struct
from pathlib import Path

from vmm.bench import guestcode

# Between these two bytes a guest works; no VMM's messages have them.
FIRST, LAST = b"\x02", b"\x03"
# Where the guests of benchmarks/guests are linked to, and their numbers, from there on.
ENTRY = 0x100000
NUMBERS_OFFSET = 8
CODE_OFFSET = 0x1000
PHYS32_ENTRY = 18


def pvh_elf(code: bytes) -> bytes:
    """An ELF file whose one segment is ``code``, entered at its begin in 32-bit protected mode."""
    note = struct.pack("<III", 4, 4, PHYS32_ENTRY) + b"Xen\0" + struct.pack("<I", ENTRY)
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    head = ident + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, ENTRY, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    size = len(code)
    load = struct.pack("<IIQQQQQQ", 1, 7, CODE_OFFSET, ENTRY, ENTRY, size, size, 0x1000)
    at = len(head) + 2 * len(load)
    notes = struct.pack("<IIQQQQQQ", 4, 4, at, 0, 0, len(note), len(note), 4)
    return (head + load + notes + note).ljust(CODE_OFFSET, b"\0") + code


def with_numbers(code: bytes, *numbers: int) -> bytes:
    """The code with other numbers in its first places."""
    end = NUMBERS_OFFSET + 4 * len(numbers)
    return code[:NUMBERS_OFFSET] + struct.pack(f"<{len(numbers)}I", *numbers) + code[end:]


def write_once(path: Path, data: bytes) -> Path:
    """The file, untouched where it is there: a VMM may know a kernel again by its inode and times.

    So does ours, and a guest written anew for each start would be one that it has never seen.
    """
    if not path.exists() or path.read_bytes() != data:
        path.write_bytes(data)
    return path


def write_byte_guest(path: Path, reads: int = 0) -> Path:
    """FIRST, ``reads`` reads of the serial port's LSR, LAST; then it halts for ever."""
    return write_once(path, pvh_elf(with_numbers(guestcode.BYTE, reads)))


def write_timer_guest(path: Path, count: int, period_ns: int, spin: int) -> Path:
    """Arms its APIC's timer ``count`` times for ``period_ns``: benchmarks/guests/timer.S.

    KVM's APIC timer counts in ns. ``spin``: cycles of the TSC between FIRST and `=`.
    """
    return write_once(path, pvh_elf(with_numbers(guestcode.TIMER, count, period_ns, spin)))
