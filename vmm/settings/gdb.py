"""GDB: where a debugger may call, by its form alone. Pure."""

from __future__ import annotations

from vmm.light.printable import quote
from vmm.light.record import Record
from vmm.settings.parse import BadValue, check_path, parse_integer, split_list

FORM = "127.0.0.1:PORT, [::1]:PORT or a socket's path with a '/'; then perhaps ,wait"
TCP = "tcp"
UNIX = "unix"
WAIT = "wait"
PORT_MAX = 65535
LOCALHOST = "127.0.0.1"
LOOPBACK6 = "::1"
QUAD_PARTS = 4
BYTE_MAX = 255


class GdbAddress(Record):
    """``kind`` tcp with host and port (0: one that is free), or unix with a path.

    ``wait``: the guest stands at its entry point until a debugger lets it go on.
    """

    __slots__ = ("host", "kind", "path", "port", "wait")
    kind: str
    host: str
    port: int
    path: str
    wait: bool

    def __init__(
        self, kind: str, host: str = "", port: int = 0, path: str = "", wait: bool = False
    ) -> None:
        self._set(kind=kind, host=host, port=port, path=path, wait=wait)

    def __str__(self) -> str:
        if self.kind == UNIX:
            return self.path
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def parse_gdb(text: str) -> GdbAddress:
    """An address on loopback or a path, and ``wait``; quotes protect a comma in a path."""
    place, *options = split_list(text)
    for option in options:
        if option.strip() != WAIT:
            raise BadValue(f"{quote(option)} is not {WAIT} (quote a path with a comma)")
    wait = bool(options)
    if "/" in place:
        return GdbAddress(UNIX, path=check_path(place), wait=wait)
    host, colon, port = place.rpartition(":")
    if not colon:
        raise BadValue(f"{quote(place)} is neither HOST:PORT nor a path with a '/'")
    return GdbAddress(TCP, _loopback(host), parse_integer(port, 0, PORT_MAX), wait=wait)


def _loopback(host: str) -> str:
    """The address; BadValue unless it is this machine's alone."""
    bare = host[1:-1] if host[:1] == "[" and host[-1:] == "]" else host
    if bare in ("", "localhost"):
        return LOCALHOST
    parts = bare.split(".")
    if len(parts) == QUAD_PARTS and parts[0] == "127":
        return ".".join([str(parse_integer(part, 0, BYTE_MAX)) for part in parts])
    if bare == LOOPBACK6 and host != bare:
        return bare
    raise BadValue(
        f"{quote(host)} is not loopback: whoever reaches a debugger's port owns the guest; use "
        "127.0.0.1 or [::1], and a tunnel (ssh -L) from elsewhere"
    )
