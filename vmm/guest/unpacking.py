"""Where a bzImage has unpacked its kernel and goes to it, so that one can stop in between.

The code in front of the payload moves all of it out of the way and jumps to what lies behind the
payload; that unpacks the kernel, moves it by KASLR, applies its relocations, and jumps to it. At
the second jump rax holds the gpa of the kernel's entry; its symbols are in RAM behind it then, and
none of its instructions has run. Source: arch/x86/boot/compressed/head_64.S; boot.rst.
"""

from __future__ import annotations

import struct

from vmm.errors import GuestError
from vmm.light.record import Record
from vmm.light.regular import open_regular

# lea disp32(%rbx), %rax; jmp *%rax: to the copy of what lies behind the payload.
LEA = b"\x48\x8d\x83"
JUMP = b"\xff\xe0"
FIRST = struct.Struct("<3sI2s")
HEAD_BYTES = 0x260
SETUP_SECTS, CODE32_START, PAYLOAD = 0x1F1, 0x214, 0x248
SECTOR = 512
BEHIND_BYTES = 512
REMEDY = "give a vmlinux, or break where the kernel runs already"


class Unpacking(Record):
    """``first`` is the gpa of the first jump; the second is at rax there plus ``second``."""

    __slots__ = ("first", "second")
    first: int
    second: int

    def __init__(self, first: int, second: int) -> None:
        self._set(first=first, second=second)


def unpacking_of(kernel_path: str) -> Unpacking:
    """Those of a bzImage; GuestError for a file that is none, or has code of another form."""
    try:
        with open(open_regular(kernel_path), "rb") as file:
            head = file.read(HEAD_BYTES)
            setup = ((head[SETUP_SECTS] or 4) + 1) * SECTOR
            payload, length = struct.unpack_from("<II", head, PAYLOAD)
            file.seek(setup + payload - FIRST.size)
            lea, behind, jump = FIRST.unpack(file.read(FIRST.size))
            file.seek(setup + behind)
            code = file.read(BEHIND_BYTES)
    except (OSError, IndexError, struct.error) as error:
        raise GuestError(f"{kernel_path} is no bzImage: {error}", REMEDY) from error
    second = code.find(JUMP)
    if (lea, jump) != (LEA, JUMP) or behind < payload + length or second < 0:
        raise GuestError(f"{kernel_path}: it does not unpack itself as Linux does", REMEDY)
    start: int = struct.unpack_from("<I", head, CODE32_START)[0]
    return Unpacking(start + payload - len(JUMP), second)
