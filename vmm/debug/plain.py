"""Plain values as text and back: what a snapshot's file says besides RAM.

JSON, with bytes as {"b64": text}; whoever wrote the text, what comes back has only plain types.
"""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any

BYTES_KEY = "b64"


def to_text(value: Any) -> bytes:
    """A value of dicts with text keys, lists, tuples (then lists), ints, bytes, str, bool, None."""
    return json.dumps(value, default=_bytes, separators=(",", ":"), allow_nan=False).encode()


def _bytes(value: object) -> dict[str, str]:
    if isinstance(value, (bytes, bytearray)):
        return {BYTES_KEY: base64.b64encode(value).decode()}
    raise TypeError(f"a {type(value).__name__} is no plain value")


def from_text(text: bytes) -> Any:
    """The value again; ValueError when the text is none of to_text()'s."""
    try:
        return json.loads(
            text, object_hook=_object, parse_constant=_no_constant, parse_float=_no_constant
        )
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _object(found: dict[str, Any]) -> Any:
    if found.keys() != {BYTES_KEY}:
        return found
    try:
        return base64.b64decode(found[BYTES_KEY], validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise ValueError(f"bytes that are none: {error}") from None


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text[:20]} is no whole number")
