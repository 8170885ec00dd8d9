"""The forms of what gdb asks: numbers, threads, addresses with lengths. ValueError for others."""

from __future__ import annotations

DIGITS_MAX = 16
HEX = frozenset(b"0123456789abcdefABCDEF")


def address_of(text: bytes) -> int:
    """A hexadecimal number of at most 64 bits."""
    if not text or len(text) > DIGITS_MAX or not HEX.issuperset(text):
        raise ValueError(f"{text[:40]!r} is no hexadecimal number of 64 bits")
    return int(text, 16)


def thread_of(text: bytes) -> int:
    """A thread's number; 0 is any, -1 all."""
    return -1 if text == b"-1" else address_of(text)


def memory_of(text: bytes) -> tuple[int, int]:
    """``ADDRESS,LENGTH``."""
    address, comma, length = text.partition(b",")
    if not comma:
        raise ValueError(f"{text[:40]!r} is not ADDRESS,LENGTH")
    return address_of(address), address_of(length)


def breakpoint_of(text: bytes) -> tuple[int, int, int]:
    """``KIND,ADDRESS,SIZE``; conditions and commands behind it are not ours."""
    parts = text.split(b";")[0].split(b",")
    if len(parts) != 3:
        raise ValueError(f"{text[:40]!r} is not KIND,ADDRESS,SIZE")
    kind, address, size = [address_of(part) for part in parts]
    return kind, address, size
