"""Logging: light, safe from any thread, never in the guest's way.

The logging package takes 11 ms to import, which the start of a guest would pay. A line goes to
every configured sink; a sink that fails later loses its lines and is told about once.
"""

from __future__ import annotations

from vmm.light.teardown import try_all

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
    """Fans lines out to sinks. One for the process: a log line belongs to no VM object."""

    def __init__(self) -> None:
        self.sinks: list[Sink] = []
        self.level = INFO
        # What every record says besides its message, such as the instance it is about.
        self.context: Fields = ()

    def emit(self, level: int, name: str, message: str, fields: Fields = ()) -> None:
        """Send one message to all sinks when the level asks for it."""
        if level <= self.level:
            for sink in self.sinks:
                sink.write(level, name, message, [*self.context, *fields])

    def configure(self, sinks: list[Sink], debug: bool) -> None:
        """Replace the sinks (the old ones are closed, as far as they can be)."""
        old, self.sinks = self.sinks, sinks
        self.level = DEBUG if debug else INFO
        for error in try_all([sink.close for sink in old]):
            self.emit(WARNING, __name__, f"closing the log: {error}")

    def reopen(self) -> None:
        """Reopen every file, for log rotation."""
        for sink in self.sinks:
            sink.reopen()


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
