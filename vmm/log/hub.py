"""Logging: light, safe from any thread, never in the guest's way.

The logging package takes 11 ms to import, which the start of a guest would pay. A line goes to
every configured sink; a sink that fails later loses its lines and is told about once. Each place in
the code has a budget of lines (see ratelimit.py), whoever writes there: a guest cannot fill a disk.
"""

from __future__ import annotations

import sys
import time
from _thread import get_ident

from vmm.light.teardown import try_all
from vmm.log.ratelimit import RateLimit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Protocol

    # (name, value) pairs for sinks that keep structured records; a name may come twice.
    Fields = Sequence[tuple[str, str]]

    class Sink(Protocol):
        """Where lines go."""

        def write(self, level: int, name: str, message: str, fields: Fields = ()) -> None:
            """Deliver one message; must not raise and not block for long."""

        def reopen(self) -> None:
            """Open the destination anew (log rotation)."""

        def close(self) -> None:
            """Deliver what is left and let go."""


# Levels are syslog's priorities (RFC 5424, 6.2.1): smaller is more urgent.
ERROR = 3
WARNING = 4
INFO = 6
DEBUG = 7


class LogHub:
    """Fans lines out to sinks. One for the process: a log line belongs to no VM object.

    emit() may be called from any thread; configure() and reopen() belong to the control thread,
    which is the one that made the hub.
    """

    def __init__(self) -> None:
        self.sinks: list[Sink] = []
        self.level = INFO
        # What every record says besides its message, such as the instance it is about.
        self.context: Fields = ()
        self._control_thread = get_ident()
        self._limit = RateLimit()

    def emit(self, level: int, name: str, message: str, fields: Fields = ()) -> None:
        """Send one message to all sinks when the level asks for it, and its place may still talk.

        The place is the line that called the Logger, which must have called this directly.
        """
        if level > self.level:
            return
        frame = sys._getframe(1).f_back or sys._getframe(0)
        control = get_ident() == self._control_thread
        place = (frame.f_code.co_filename, frame.f_lineno, level, control)
        now = time.monotonic()
        missed = self._limit.ask(place, (level, name, message), now)
        if missed is not None:
            self._deliver(level, name, _with_count(message, missed), fields)
            self._tell_suppressed(now)

    def _deliver(self, level: int, name: str, message: str, fields: Fields = ()) -> None:
        for sink in self.sinks:
            sink.write(level, name, message, [*self.context, *fields])

    def _tell_suppressed(self, now: float | None) -> None:
        """Say how many lines of other places nobody saw; ``now`` None: of all, at the end."""
        for missed, (level, name, message) in self._limit.overdue(now):
            if level <= self.level:
                first, _, _ = message.partition("\n")
                self._deliver(level, name, f"{missed} more suppressed, the last: {first}")

    def configure(self, sinks: list[Sink], debug: bool) -> None:
        """Replace the sinks (the old ones are closed, as far as they can be)."""
        self._tell_suppressed(None)
        old, self.sinks = self.sinks, sinks
        self.level = DEBUG if debug else INFO
        for error in try_all([sink.close for sink in old]):
            self.emit(WARNING, __name__, f"closing the log: {error}")

    def reopen(self) -> None:
        """Reopen every file, for log rotation."""
        for sink in self.sinks:
            sink.reopen()


def _with_count(message: str, missed: int) -> str:
    """The message, its first line with how many like it were not written before it."""
    if not missed:
        return message
    first, newline, rest = message.partition("\n")
    return f"{first} ({missed} more suppressed){newline}{rest}"


# The one piece of state at module level: lower layers log without being handed a logger, and
# whoever starts a process (the command line, a test) decides where it goes.
hub = LogHub()


class Logger:
    """Named face of the hub."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def debugging(self) -> bool:
        """True when debug lines are wanted; guard costly messages with it."""
        return hub.level >= DEBUG

    def debug(self, message: str) -> None:
        """A line for developers."""
        hub.emit(DEBUG, self.name, message)

    def info(self, message: str) -> None:
        """Something happened as it should."""
        hub.emit(INFO, self.name, message)

    def warning(self, message: str) -> None:
        """Something is wrong, and the guest goes on."""
        hub.emit(WARNING, self.name, message)

    def error(self, message: str, fields: Fields = ()) -> None:
        """Something failed."""
        hub.emit(ERROR, self.name, message, fields)


def get_logger(name: str) -> Logger:
    """The logger of a module: ``get_logger(__name__)``."""
    return Logger(name)
