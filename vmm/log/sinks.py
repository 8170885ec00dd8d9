"""Where log lines go: standard streams, files, journald, syslog.

A destination that cannot be opened at the start is an error. One that fails later (a full disk, a
reader that went away) drops lines, counts them, tells the number when it works again, and never
holds the guest up.
"""

from __future__ import annotations

import os
import time

from vmm._native.host.posix import write_now
from vmm.errors import HostError
from vmm.light.printable import escape
from vmm.log.stream import can_wait, open_anew, open_output

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from vmm.log.hub import Fields, Sink

IDENTIFIER = "vllmd-hypervisor"
JOURNAL_SOCKET = "/run/systemd/journal/socket"
# linux/sockios.h: bytes sent that the other end has not read yet.
SIOCOUTQ = 0x5411
# How long the end of this process waits for journald to take the last messages.
SETTLE_SECONDS = 0.3
SETTLE_STEP_SECONDS = 0.002
SYSLOG_SOCKET = "/dev/log"
STREAMS = {"/dev/stdout": 1, "/dev/stderr": 2}
LEVEL_NAMES = {3: "error", 4: "warning", 6: "info", 7: "debug"}
WARNING_LEVEL = 4
# Facility "daemon" of syslog (RFC 5424, 6.2.1).
SYSLOG_FACILITY = 3 << 3


def time_stamp() -> str:
    """Now, UTC, with milliseconds: 2026-01-31T12:00:00.123Z."""
    now = time.time()
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(now))}.{int(now * 1000) % 1000:03d}Z"


class FdSink:
    """Lines to a descriptor, each with a time stamp or with journald's ``<N>`` prefix.

    ``owned``: ``fd`` is closed with the sink, and never waits for a reader. Else it belongs to
    whoever started us, and is asked before each line whether there is room for it.
    """

    def __init__(self, fd: int, priority_prefix: bool = False, owned: bool = False) -> None:
        self._fd = fd
        self._priority_prefix = priority_prefix
        self._owned = owned
        self._waits = not owned and can_wait(fd)
        # What is left of a line that was begun; the next one has to wait for it.
        self._rest = b""
        self.lost = 0

    def write(self, level: int, name: str, message: str, fields: Fields = ()) -> None:
        """Deliver a message, one line for each of its lines."""
        for line in escape(message).split("\n"):
            if self._priority_prefix:
                text = f"<{level}>{line}\n"
            else:
                text = f"{time_stamp()} {LEVEL_NAMES[level]} {name.removeprefix('vmm.')}: {line}\n"
            self._put(text.encode(errors="replace"))

    def _put(self, data: bytes) -> None:
        if self.lost:
            note = f"({self.lost} log lines were lost here)\n"
            lost, self.lost = self.lost, 0
            if not self._send(note.encode()):
                self.lost = lost
        if not self._send(data):
            self.lost += 1

    def _send(self, data: bytes) -> bool:
        """False when it cannot be delivered now; a reader that sleeps is not waited for."""
        try:
            if self._waits and not self._writable():
                return False
            if self._rest:
                self._rest = self._rest[write_now(self._fd, self._rest) :]
            if self._rest:
                return False
            self._rest = data[write_now(self._fd, data) :]
        except OSError:
            return False
        return True

    def _writable(self) -> bool:
        import select

        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        return bool(poll.poll(0))

    def fileno(self) -> int:
        """The descriptor, which stays the same over reopen()."""
        return self._fd

    def reopen(self) -> None:
        """A stream belongs to whoever started us; nothing to do."""

    def close(self) -> None:
        """Close what is ours."""
        if self._owned:
            os.close(self._fd)


class PumpedSink(FdSink):
    """Lines to a terminal or pipe of another user's, where a thread waits in place of us."""

    def __init__(self, fd: int) -> None:
        from vmm._native.console.byteport import BytePort

        super().__init__(fd)
        self._port = BytePort(-1, fd)
        self._port.start("log")

    def _send(self, data: bytes) -> bool:
        self._port.guest_write(data)
        return True

    def close(self) -> None:
        """Write out what is left, for at most a second."""
        self._port.close()


class FileSink(FdSink):
    """Appends to a file, which reopen() opens anew for log rotation."""

    def __init__(self, path: str) -> None:
        self.path = path
        super().__init__(self._open(), owned=True)

    def _open(self) -> int:
        directory = os.path.dirname(self.path)
        if directory:
            os.makedirs(directory, exist_ok=True)
        return open_output(self.path)

    def reopen(self) -> None:
        """Open the path again; the old file stays in use when that fails."""
        try:
            fd = self._open()
        except OSError as error:
            self.write(WARNING_LEVEL, __name__, f"cannot reopen {self.path}: {error.strerror}")
            return
        # Under the same number: other threads write to it at any time.
        os.dup2(fd, self._fd, inheritable=False)
        os.close(fd)
        self._rest = b""


class DatagramSink:
    """Messages to a Unix datagram socket, one datagram each: journald or syslog."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.lost = 0
        self._socket: Any = None
        self._connect()

    def _connect(self) -> None:
        import _socket

        kind = _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK
        link = _socket.socket(_socket.AF_UNIX, kind)
        try:
            link.connect(self.path)
        except OSError:
            link.close()
            raise
        self.close()
        self._socket = link

    def encode(self, level: int, name: str, message: str, fields: Fields) -> bytes:
        """The datagram for one message."""
        raise NotImplementedError

    def write(self, level: int, name: str, message: str, fields: Fields = ()) -> None:
        """Send; the daemon may have been restarted since, so connect once more when that fails."""
        data = self.encode(level, name, message, fields)
        try:
            self._socket.send(data)
        except BlockingIOError:
            self.lost += 1
        except OSError:
            try:
                self._connect()
                self._socket.send(data)
            except OSError:
                self.lost += 1

    def reopen(self) -> None:
        """Nothing to reopen: write() connects again by itself."""

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()


class JournalSink(DatagramSink):
    """journald's native protocol (systemd, docs/JOURNAL_NATIVE_PROTOCOL.md)."""

    def encode(self, level: int, name: str, message: str, fields: Fields) -> bytes:
        """Fields, with MESSAGE in the form that may hold several lines."""
        text = escape(message).encode(errors="replace")
        head = [("PRIORITY", str(level)), ("SYSLOG_IDENTIFIER", IDENTIFIER), ("LOGGER", name)]
        lines = [f"{field}={_one_line(value)}\n" for field, value in [*head, *fields]]
        start = "".join(lines).encode(errors="replace") + b"MESSAGE\n"
        return start + len(text).to_bytes(8, "little") + text + b"\n"

    def close(self) -> None:
        """Close when journald has taken everything, or after a moment.

        It finds out which unit a sender belongs to only while the sender lives, so the last
        words of a process that ends at once would be lost to `systemctl status`. It handles one
        datagram after the other: when it has read an empty record, it is done with those before.
        """
        if self._socket is not None and self._unread():
            self._settle()
            try:
                self._socket.send(b"\n")
            except OSError:
                self.lost += 1
            self._settle()
        super().close()

    def _unread(self) -> int:
        """Bytes that journald has not read yet."""
        import fcntl

        got = fcntl.ioctl(self._socket.fileno(), SIOCOUTQ, bytes(4))
        return int.from_bytes(got, "little")

    def _settle(self) -> None:
        deadline = time.monotonic() + SETTLE_SECONDS
        while self._unread() and time.monotonic() < deadline:
            time.sleep(SETTLE_STEP_SECONDS)


class SyslogSink(DatagramSink):
    """The local syslog daemon, in the format of RFC 3164."""

    def encode(self, level: int, name: str, message: str, fields: Fields) -> bytes:
        """Priority, time, identifier, text on one line."""
        stamp = time.strftime("%b %e %H:%M:%S")
        text = escape(message).replace("\n", " | ")
        line = f"<{SYSLOG_FACILITY | level}>{stamp} {IDENTIFIER}[{os.getpid()}]: {text}"
        return line.encode(errors="replace")


def _one_line(value: str) -> str:
    return escape(value).replace("\n", " ")


def stream_is_journal(fd: int, journal_stream: str) -> bool:
    """True when ``JOURNAL_STREAM`` (device:inode) names this very stream (systemd.exec(5))."""
    try:
        stat = os.fstat(fd)
    except OSError:
        return False
    return journal_stream == f"{stat.st_dev}:{stat.st_ino}"


def open_sink(destination: str, journal_stream: str = "") -> Sink:
    """The sink for one destination; OSError when it cannot be opened."""
    if destination in STREAMS:
        fd = STREAMS[destination]
        if not stream_is_journal(fd, journal_stream):
            return _stream_sink(fd)
        try:
            # Whole messages with fields, where the stream has bare lines.
            return JournalSink(JOURNAL_SOCKET)
        except OSError:
            return FdSink(fd, priority_prefix=True)
    if destination == "journald":
        return JournalSink(JOURNAL_SOCKET)
    if destination == "syslog":
        return SyslogSink(SYSLOG_SOCKET)
    return FileSink(destination)


def _stream_sink(fd: int) -> Sink:
    own = open_anew(fd)
    if own >= 0:
        return FdSink(own, owned=True)
    return PumpedSink(fd) if can_wait(fd) else FdSink(fd)


def open_sinks(destinations: tuple[str, ...], journal_stream: str = "") -> list[Sink]:
    """A sink for each destination; HostError names the one that cannot be opened."""
    sinks: list[Sink] = []
    for destination in destinations:
        try:
            sinks.append(open_sink(destination, journal_stream))
        except OSError as error:
            for sink in sinks:
                sink.close()
            raise cannot_log(destination, error.strerror) from error
    return sinks


def cannot_log(destination: str, why: str | None) -> HostError:
    """The error for a destination that cannot be opened."""
    return HostError(
        f"VLLMD_HYPERVISOR_LOG_FILEPATH: cannot log to {destination}: {why}",
        "give a path that can be written, /dev/stdout, /dev/stderr, journald or syslog",
    )
