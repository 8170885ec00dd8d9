"""JSON out, without the json package: that brings regular expressions, 20 ms and 2 MiB of them.

JSON in brings it, and is careful: what is read was written by somebody else.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# So deep objects and lists of others may be nested: no less than ours are.
DEPTH_MAX = 32
_PLAIN = {
    '"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\b": "\\b",
    "\f": "\\f",
}  # fmt: skip


def dumps(value: object, indent: int = 0) -> str:
    """``value`` (dict with text keys, list, tuple, text, number, bool, None) as JSON in ASCII.

    With ``indent`` one element a line; TypeError for anything else.
    """
    return _write(value, indent, "\n")


def loads(text: str | bytes) -> dict[str, Any]:
    """The JSON object in ``text``, with finite numbers only; ValueError for anything else."""
    import json

    try:
        parsed = json.loads(text, parse_constant=_finite, parse_float=_finite)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(parsed, dict):
        raise ValueError(f"a {type(parsed).__name__} in place of an object")
    level: list[object] = [parsed]
    for _ in range(DEPTH_MAX):
        level = [inner for value in level for inner in _inside(value)]
        if not level:
            return parsed
    raise ValueError("nested too deeply")


def _inside(value: object) -> list[object]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _finite(text: str) -> float:
    number = float(text)
    if number - number != 0:
        raise ValueError(f"{text[:20]} is no number of JSON's")
    return number


def _write(value: object, indent: int, line: str) -> str:
    if isinstance(value, str):
        return _quote(value)
    if value is None or value is True or value is False:
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return _number(value)
    inner = line + " " * indent
    if isinstance(value, dict):
        rows = [f"{_quote(key)}: {_write(item, indent, inner)}" for key, item in value.items()]
        return _block("{", rows, "}", indent, line)
    if isinstance(value, list | tuple):
        return _block("[", [_write(item, indent, inner) for item in value], "]", indent, line)
    raise TypeError(f"{value!r} has no form in JSON")


def _block(head: str, rows: list[str], tail: str, indent: int, line: str) -> str:
    if not rows:
        return head + tail
    if not indent:
        return head + ", ".join(rows) + tail
    inner = line + " " * indent
    return head + inner + f",{inner}".join(rows) + line + tail


def _number(value: int | float) -> str:
    if value != value or value in (float("inf"), float("-inf")):
        raise TypeError(f"{value!r} has no form in JSON")
    return repr(value)


def _quote(text: str) -> str:
    if text.isascii() and text.isprintable() and '"' not in text and "\\" not in text:
        return f'"{text}"'
    return '"' + "".join([_escape(char) for char in text]) + '"'


def _escape(char: str) -> str:
    if char in _PLAIN:
        return _PLAIN[char]
    if " " <= char <= "~":
        return char
    code = ord(char)
    if code < 0x10000:
        return f"\\u{code:04x}"  # also what stands for a byte of a path that is no UTF-8
    code -= 0x10000
    return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"
