"""Runs a filter of system calls (classic BPF, as seccomp uses it) in Python."""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

ARCH_X86_64 = 0xC000003E
LOAD, AND, GO, EQUAL, GREATER, AT_LEAST, ANY_BIT, RETURN = (
    0x20, 0x54, 0x05, 0x15, 0x25, 0x35, 0x45, 0x06,
)  # fmt: skip
WORD = 0xFFFFFFFF


@lru_cache
def steps_of(program: bytes) -> list[tuple[int, int, int, int]]:
    return list(struct.iter_unpack("<HBBI", program))


def verdict(program: bytes, call: int, args: Sequence[int] = (), arch: int = ARCH_X86_64) -> int:
    """What the kernel would do with this call: SECCOMP_RET_*, with its data."""
    steps = steps_of(program)
    words = [value & (1 << 64) - 1 for value in [*args, *[0] * (6 - len(args))]]
    data = struct.pack("<IIQ6Q", call & WORD, arch, 0, *words)
    at = accumulator = 0
    while True:
        code, yes, no, operand = steps[at]
        at += 1
        if code == RETURN:
            return operand
        if code == LOAD:
            accumulator = struct.unpack_from("<I", data, operand)[0]
        elif code == AND:
            accumulator &= operand
        elif code == GO:
            at += operand
        else:
            holds = {
                EQUAL: accumulator == operand,
                GREATER: accumulator > operand,
                AT_LEAST: accumulator >= operand,
                ANY_BIT: bool(accumulator & operand),
            }[code]
            at += yes if holds else no
