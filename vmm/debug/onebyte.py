"""Which instructions are one byte long: those without operands (SDM 2D, appendix A, table A-2)."""

from __future__ import annotations

# In every mode: push, pop, xchg, cbw to lahf, strings, ret, leave, int3, iret, xlat, in/out dx,
# int1, hlt, cmc, flags.
ALWAYS = frozenset(
    [
        *range(0x50, 0x60),
        *range(0x6C, 0x70),
        *range(0x90, 0x9A),
        *range(0x9B, 0xA0),
        *range(0xA4, 0xA8),
        *range(0xAA, 0xB0),
        0xC3,
        0xC9,
        0xCB,
        0xCC,
        0xCF,
        0xD7,
        *range(0xEC, 0xF0),
        0xF1,
        0xF4,
        0xF5,
        *range(0xF8, 0xFE),
    ]
)
# Outside of 64-bit mode: push and pop of segments, decimal adjustment, inc, dec, pusha, popa, into.
LEGACY = frozenset(
    [
        0x06,
        0x07,
        0x0E,
        0x16,
        0x17,
        0x1E,
        0x1F,
        0x27,
        0x2F,
        0x37,
        0x3F,
        *range(0x40, 0x50),
        0x60,
        0x61,
        0xCE,
    ]
)


def is_one_byte(opcode: int, long_mode: bool) -> bool:
    """Whether the instruction that begins with this byte ends with it."""
    return opcode in ALWAYS or (not long_mode and opcode in LEGACY)
