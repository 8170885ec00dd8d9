"""Who calls: the user at the other end of a connection, by the kernel's word."""

from __future__ import annotations

import os
import struct
from typing import Any

from vmm.run.control import peer

TABLES = {4: "/proc/net/tcp", 6: "/proc/net/tcp6"}
ESTABLISHED = "01"


def allowed(link: Any) -> bool:
    """Whether this process's user or root has called."""
    import _socket

    if link.family == _socket.AF_UNIX:
        return peer(link)[1] in (0, os.geteuid())
    version = 6 if link.family == _socket.AF_INET6 else 4
    return tcp_user(version, link.getpeername(), link.getsockname()) in (0, os.geteuid())


def tcp_user(version: int, peer: tuple[Any, ...], own: tuple[Any, ...]) -> int | None:
    """Whose socket on this machine is ``peer``, connected to ``own``; None when nobody's.

    Only a socket that is open has a user: the kernel shows 0 for others. Source: proc(5).
    """
    wanted = [_row_form(version, end) for end in (peer, own)]
    with open(TABLES[version], encoding="ascii") as table:
        for line in table:
            fields = line.split()
            if fields[1:4] == [*wanted, ESTABLISHED] and fields[9] != "0":
                return int(fields[7])
    return None


def _row_form(version: int, end: tuple[Any, ...]) -> str:
    """``0100007F:04D2``: the address in words of the processor's byte order, and the port."""
    import _socket

    family = _socket.AF_INET6 if version == 6 else _socket.AF_INET
    raw = _socket.inet_pton(family, end[0])
    words = struct.unpack(f"={len(raw) // 4}I", raw)
    return "".join([f"{word:08X}" for word in words]) + f":{end[1]:04X}"
