"""Tells systemd how the service does: sd_notify(3) over the socket in NOTIFY_SOCKET."""

from __future__ import annotations

import os

from vmm.settings.parse import is_decimal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

GIB = 1 << 30
MIB = 1 << 20
# systemd reads no more of a datagram than this (PIPE_BUF), and a status is one line.
STATUS_MAX = 1000
# What one step of a long start may take before the next is told: 4 GiB of RAM pinned.
STEP_SECONDS = 60
# Longer than a year is no watchdog.
WATCHDOG_DIGITS_MAX = 13
# What the VMM needs to take a machine apart after the guest's own time is over.
CLOSE_SECONDS = 10


class Notifier:
    """Sends state to the service manager; without a socket it does nothing. Control thread.

    ``watchdog_seconds`` is how often feed() must be called at the latest, 0 for never: half of
    what the manager waits for (sd_watchdog_enabled(3)).
    """

    def __init__(self, address: str = "", watchdog_usec: int = 0) -> None:
        # A leading @ stands for the NUL byte of an abstract socket.
        self.abstract = address.startswith("@")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self.watchdog_seconds = watchdog_usec / 2 / 1e6 if address else 0.0

    @classmethod
    def from_env(cls, environment: Mapping[str, str]) -> Notifier:
        """By NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID, which may mean another process."""
        usec = environment.get("WATCHDOG_USEC", "")
        pid = environment.get("WATCHDOG_PID", "")
        mine = not pid or pid == str(os.getpid())
        good = mine and is_decimal(usec, WATCHDOG_DIGITS_MAX)
        return cls(environment.get("NOTIFY_SOCKET", ""), int(usec) if good else 0)

    def send(self, **fields: object) -> None:
        """Send ``NAME=value`` lines; a manager that does not listen is no error."""
        if not self._address:
            return
        import _socket

        text = "\n".join([f"{name}={_one_line(value)}" for name, value in fields.items()])
        kind = _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK
        try:
            link = _socket.socket(_socket.AF_UNIX, kind)
        except OSError:
            return  # no descriptors left
        try:
            link.sendto(text.encode(errors="replace"), self._address)
        except OSError:
            return
        finally:
            link.close()

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self.send(STATUS=text)

    def progress(self, what: str, done: int, total: int) -> None:
        """A long step: ``done`` of ``total`` bytes; the manager's patience starts anew."""
        name, unit = ("GiB", GIB) if total >= 2 * GIB else ("MiB", MIB)
        self.send(
            STATUS=f"{what} {done / unit:.0f} of {total / unit:.0f} {name}",
            EXTEND_TIMEOUT_USEC=STEP_SECONDS * 1_000_000,
        )
        self.feed()

    def ready(self, text: str) -> None:
        """The guest runs (again)."""
        self.send(READY=1, STATUS=text)

    def reloading(self) -> None:
        """Log files are being opened anew; ready() ends it."""
        import time

        usec = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self.send(RELOADING=1, MONOTONIC_USEC=usec)

    def stopping(self, text: str, seconds: float) -> None:
        """The end has begun and takes ``seconds``, and a while for us, at the longest."""
        usec = int((seconds + CLOSE_SECONDS) * 1_000_000)
        self.send(STOPPING=1, STATUS=text, EXTEND_TIMEOUT_USEC=usec)

    def feed(self) -> None:
        """The control thread is alive; a manager that hears no more of it restarts the service."""
        if self.watchdog_seconds:
            self.send(WATCHDOG=1)


def _one_line(value: object) -> str:
    """A line break would begin another field, and a guest has a say in some texts."""
    text = str(value).replace("\n", "; ")
    return "".join([char if char.isprintable() else "?" for char in text])[:STATUS_MAX]
