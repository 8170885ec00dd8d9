"""Packets of gdb's remote serial protocol: ``$data#checksum``, acknowledgements, and Ctrl-C.

What comes is a stranger's until it is understood: a packet has at most PACKET_MAX bytes, and bytes
between packets that no debugger sends end the connection. So a web page cannot smuggle packets in a
request's body. Source: gdb's manual, appendix E (Remote Protocol), Overview.
"""

from __future__ import annotations

from typing import Final

PACKET_MAX = 16 << 10
INTERRUPT_BYTE = 0x03
ACK, NAK = b"+", b"-"
ESCAPE = 0x7D
ESCAPED = frozenset(b"#$}*")
BETWEEN = frozenset(b"+-$\x03")
DOLLAR, MINUS = 0x24, 0x2D
CHECKSUM_DIGITS = 2


class ProtocolError(Exception):
    """These are no bytes of a debugger's."""


class Packet:
    """``data`` without escapes; ``good``: the checksum is right."""

    __slots__ = ("data", "good")

    def __init__(self, data: bytes, good: bool) -> None:
        self.data = data
        self.good = good


class Signal:
    """Something of one byte."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


# Ctrl-C, and that our last packet was not understood.
INTERRUPT: Final = Signal("interrupt")
AGAIN: Final = Signal("again")

Event = Packet | Signal


def encode(data: bytes) -> bytes:
    """A whole packet with this data."""
    if ESCAPED.intersection(data):
        data = b"".join([bytes((ESCAPE, b ^ 0x20)) if b in ESCAPED else bytes((b,)) for b in data])
    return b"$%s#%02x" % (data, sum(data) & 0xFF)


class Decoder:
    """Bytes as they come in, packets and signals out."""

    def __init__(self) -> None:
        self._left = b""

    def feed(self, data: bytes) -> list[Event]:
        """What is complete by now; ProtocolError for bytes that no debugger sends."""
        self._left += data
        found: list[Event] = []
        while self._left:
            first = self._left[0]
            if first not in BETWEEN:
                raise ProtocolError(f"byte {first:#04x} between packets")
            if first != DOLLAR:
                if first != ACK[0]:
                    found.append(INTERRUPT if first == INTERRUPT_BYTE else AGAIN)
                self._left = self._left[1:]
                continue
            packet = self._packet()
            if packet is None:
                break
            found.append(packet)
        return found

    def _packet(self) -> Packet | None:
        """The packet at the beginning; None while it is incomplete."""
        end = self._left.find(b"#", 1)
        if (end if end >= 0 else len(self._left)) > PACKET_MAX:
            raise ProtocolError(f"a packet of more than {PACKET_MAX} bytes")
        if end < 0 or len(self._left) <= end + CHECKSUM_DIGITS:
            return None
        raw = self._left[1:end]
        told = self._left[end + 1 : end + 1 + CHECKSUM_DIGITS]
        self._left = self._left[end + 1 + CHECKSUM_DIGITS :]
        return Packet(unescape(raw), told.lower() == b"%02x" % (sum(raw) & 0xFF))


def unescape(raw: bytes) -> bytes:
    """Data as it was before it was sent."""
    if ESCAPE not in raw:
        return raw
    first, *others = raw.split(bytes((ESCAPE,)))
    return first + b"".join([bytes((part[0] ^ 0x20,)) + part[1:] for part in others if part])
