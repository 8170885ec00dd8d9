"""Text from outside made fit to be shown: nothing in it steers a terminal or hides from a reader.

A guest, a file name and an environment may hold anything: C0 and C1 control characters, DEL, line
separators, marks that turn the direction of writing, and bytes that are no UTF-8 (PEP 383).
"""

from __future__ import annotations

LENGTH_MAX = 4096
BRIEF_MAX = 120
BRIEF_HEAD = 80
# Where PEP 383 puts a byte that could not be decoded.
BYTE_FIRST = 0xDC80
BYTE_LAST = 0xDCFF


def escape(text: str, keep: str = "\n\t") -> str:
    r"""Everything that has no glyph as ``\x1b``, ``\u202e`` and the like, but for ``keep``.

    A byte that is no UTF-8 is shown as that byte: ``\xff``.
    """
    if text.isprintable():
        return text
    return "".join([c if c.isprintable() or c in keep else _code(ord(c)) for c in text])


def _code(code: int) -> str:
    if BYTE_FIRST <= code <= BYTE_LAST:
        code -= BYTE_FIRST - 0x80
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def brief(text: str) -> str:
    """``text`` on one line, cut where it is too long to be read in a message."""
    if len(text) > BRIEF_MAX:
        text = f"{text[:BRIEF_HEAD]}... ({len(text)} characters)"
    return escape(text, "")


def visible(text: object, limit: int = LENGTH_MAX) -> str:
    """What another side said, on one line, cut behind ``limit`` characters."""
    full = str(text)
    shown = escape(full[:limit], "")
    return shown if len(full) <= limit else f"{shown}..."


def quote(text: str) -> str:
    """``text`` in quotes, for a message about it."""
    return f"'{brief(text)}'"


def size_text(size: int) -> str:
    """Bytes as people write them in settings: ``512M``, exact; other numbers stay bytes."""
    for unit, shift in (("T", 40), ("G", 30), ("M", 20), ("K", 10)):
        if size and not size & ((1 << shift) - 1):
            return f"{size >> shift}{unit}"
    return f"{size} bytes"
