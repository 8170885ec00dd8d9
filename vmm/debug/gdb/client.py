"""One debugger that has called: what it sent waits here until the driving thread takes it."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from vmm.debug.gdb.packets import AGAIN, INTERRUPT, Decoder, Event, Packet, ProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable

# So many may wait; then the kernel keeps the rest, and its sender waits.
EVENTS_MAX = 64
RECEIVE_BYTES = 1 << 16
# So long a debugger may take to read what is written to it.
SEND_SECONDS = 10.0
# So long one may have the seat without a word.
SILENT_SECONDS = 10.0


class Client:
    """The door's thread calls receive(), the driving thread take() and send(), any end()."""

    def __init__(self, link: Any, drained: Callable[[], None]) -> None:
        self.link = link
        self.since = time.monotonic()
        self.gone = False
        # Nothing happens to the guest before a debugger has said something.
        self.spoke = False
        # Why we want to end the connection; it is hung up when the driving thread has done so.
        self.ending = ""
        self.dismissed = False
        self._decoder = Decoder()
        self._events: deque[Event] = deque()
        self._changed = threading.Condition()
        self._drained = drained
        link.settimeout(SEND_SECONDS)

    @property
    def full(self) -> bool:
        """Nothing more is read before something is taken."""
        return len(self._events) >= EVENTS_MAX

    @property
    def silent_too_long(self) -> bool:
        """It has the seat and does not say what for."""
        return not self.spoke and time.monotonic() - self.since > SILENT_SECONDS

    def receive(self) -> None:
        """Take in what has come; the connection's end is ``gone``."""
        try:
            data = self.link.recv(RECEIVE_BYTES)
            events = self._decoder.feed(data)
        except (OSError, ProtocolError):
            data, events = b"", []
        with self._changed:
            for event in events:
                # Many Ctrl-C are one.
                if isinstance(event, Packet) or not (self._events and self._events[-1] is event):
                    self._events.append(event)
            self.spoke = self.spoke or any(isinstance(event, Packet) for event in events)
            self.gone = self.gone or not data
            self._changed.notify()

    def hung_up(self) -> None:
        """The other end is closed."""
        with self._changed:
            self.gone = True
            self._changed.notify()

    def end(self, reason: str) -> None:
        """Let the driving thread hear that the connection shall end."""
        with self._changed:
            self.ending = self.ending or reason
            self._changed.notify()

    @property
    def over(self) -> bool:
        """Nothing more is to be had from it."""
        return self.gone or bool(self.ending)

    def interrupted(self) -> bool:
        """Ctrl-C waits, or the connection has ended: a running guest is to stand still."""
        with self._changed:
            return self.over or INTERRUPT in self._events

    def take(self) -> Packet | None:
        """The next packet, waited for; None when there will be none. Ctrl-C is passed over."""
        while True:
            event = self._next()
            if event is None or isinstance(event, Packet):
                return event
            if event is AGAIN and self._sent:
                self._write(self._sent)

    _sent = b""

    def _next(self) -> Event | None:
        with self._changed:
            self._changed.wait_for(lambda: self._events or self.over)
            was_full = self.full
            event = None if self.over else self._events.popleft()
        if was_full:
            self._drained()
        return event

    def send(self, packet: bytes) -> None:
        """Write a whole packet; one that is not read in time ends the connection."""
        self._sent = packet
        self._write(packet)

    def acknowledge(self, word: bytes) -> None:
        """Write ``+`` or ``-``."""
        self._write(word)

    def _write(self, data: bytes) -> None:
        try:
            self.link.sendall(data)
        except OSError:
            with self._changed:
                self.gone = True

    def close(self) -> None:
        """Hang up."""
        self.link.close()
