"""What both ends of an attached connection have to know of its form.

Each message is a line of JSON, an object; ``bytes`` in it says how many bytes follow the line. The
one that attaches asks, the instance answers each request in its order. The first answer may carry a
descriptor of guest RAM (unix(7), SCM_RIGHTS). Unasked the instance says but one thing, ``over``,
and closes.
"""

from __future__ import annotations

from vmm.light import jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Goes up with each change that an older end would misunderstand.
PROTOCOL = 1
LINE_MAX = 4096
# Bytes of guest RAM, or of a trace, in one answer.
READ_MAX = 1 << 20
# Bytes of guest RAM in one request.
WRITE_MAX = 1 << 16
MSRS_MAX = 64
# Room for the rings of all vCPUs together.
TRACE_BYTES_MAX = 256 << 20


def message(told: dict[str, Any], data: bytes = b"") -> bytes:
    """One message, as it is sent. TypeError for what has no form in JSON."""
    if data:
        told = {**told, "bytes": len(data)}
    return jsontext.dumps(told).encode() + b"\n" + data


def number(request: dict[str, Any], name: str, low: int, high: int) -> int:
    """An integer of a request, from ``low`` to ``high``; ValueError."""
    value = request.get(name)
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{name}={str(value)[:40]}: an integer from {low} to {high} is needed")
    return value
