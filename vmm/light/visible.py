"""Text of others made fit to be printed."""

from __future__ import annotations

LENGTH_MAX = 4096


def visible(text: object, limit: int = LENGTH_MAX) -> str:
    r"""``text`` on one line, with all that would steer a terminal or turn its order as ``\x1b``.

    Those are the control characters (C0, DEL, C1), what changes the direction of writing, line
    ends of Unicode's, and what stands for bytes that are no UTF-8.
    """
    full = str(text)
    shown = full[:limit]
    if not shown.isprintable():
        shown = "".join([char if char.isprintable() else _escape(char) for char in shown])
    return shown if len(full) <= limit else f"{shown}..."


def _escape(char: str) -> str:
    code = ord(char)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
