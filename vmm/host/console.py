"""The host's end of a guest console: terminal, file, pseudo-terminal, socket, or nothing.

It lives as long as the process, so that a guest's reboot keeps its console.
"""

from __future__ import annotations

import fcntl
import os
import time

from vmm._native.console import terminal
from vmm._native.console.byteport import BytePort
from vmm.errors import HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

TTY = "tty"
NULL = "null"
FILE = "file"
PTY = "pty"
SOCKET = "socket"
SUN_PATH_MAX = 107
# Where systemd connects a service's output, which is "/run/systemd/journal/stdout" or, in a
# journal namespace, the like.
JOURNAL_PREFIX = "/run/systemd/journal"
# journald's stream protocol: identifier, unit (journald knows it), priority info; no "<N>" at the
# beginning of lines, no copies to syslog, kernel log and console. A line each.
JOURNAL_HEADER = b"vllmd-guest\n\n6\n0\n0\n0\n0\n"
FLUSH_STEP_SECONDS = 0.001


class HostConsole:
    """One console. Everything here belongs to the control thread.

    ``port`` is what guest devices attach to; ``path`` names the pty, file or socket. With a
    terminal as stdin the terminal is in raw mode from start() to close(), Ctrl-C goes to the
    guest, and Ctrl-A x writes ``escape_fd`` (Ctrl-A Ctrl-A is one Ctrl-A).
    """

    def __init__(self, kind: str, path: str = "", escape_fd: int = -1) -> None:
        self.kind = kind
        self.path = path
        self._fds: list[int] = []
        self._saved: bytes | None = None
        self._socket: Any = None
        in_fd = out_fd = listen_fd = -1
        if kind == TTY:
            journal = _open_journal(1)
            out_fd = 1 if journal < 0 else self._keep(journal)
            in_fd = 0 if _is_terminal(0) else -1
        elif kind == FILE:
            out_fd = self._keep(_open_file(path))
        elif kind == PTY:
            in_fd = out_fd = self._open_pty()
        elif kind == SOCKET:
            listen_fd = self._listen(path)
        self._terminal = in_fd if kind == TTY else -1
        escape = escape_fd if self._terminal >= 0 else -1
        self.port = BytePort(in_fd, out_fd, listen_fd, escape)

    def _keep(self, fd: int) -> int:
        self._fds.append(fd)
        return fd

    def start(self, name: str) -> None:
        """Switch the terminal to raw mode and start pumping."""
        if self._terminal >= 0:
            import atexit

            self._saved = terminal.set_raw(self._terminal)
            atexit.register(self.restore)
        self.port.start(name)

    def size(self) -> tuple[int, int]:
        """(columns, rows) of the terminal that shows it, (0, 0) when there is none."""
        if self.kind != TTY or not _is_terminal(1):
            return 0, 0
        size = os.get_terminal_size(1)
        return size.columns, size.lines

    @property
    def raw(self) -> bool:
        """True while a terminal is in raw mode."""
        return self._saved is not None

    def reopen(self) -> None:
        """Open a file anew (log rotation); an error leaves the old one in use."""
        if self.kind == FILE:
            fd = _open_file(self.path)
            self.port.set_output(fd)
            for old in self._fds:
                os.close(old)
            self._fds = [fd]

    def flush(self, seconds: float) -> None:
        """Wait until what the guest wrote is written out, for at most so long.

        A line that the log adds to the same terminal then stands behind the guest's words.
        """
        deadline = time.monotonic() + seconds
        while self.port.waiting and time.monotonic() < deadline:
            time.sleep(FLUSH_STEP_SECONDS)

    def restore(self) -> None:
        """Give the terminal back as it was; idempotent."""
        if self._saved is not None:
            terminal.restore(self._terminal, self._saved)
            self._saved = None

    def close(self) -> None:
        """Write out what is left (for at most a second), restore the terminal; idempotent."""
        self.port.close()
        self.restore()
        for fd in self._fds:
            os.close(fd)
        self._fds = []
        if self._socket is not None:
            self._socket.close()
            self._socket = None
            os.unlink(self.path)

    def status(self) -> dict[str, object]:
        """Facts for `status`."""
        return {"kind": self.kind, "path": self.path, "dropped": self.port.dropped}

    def _open_pty(self) -> int:
        master, slave = os.openpty()
        # The slave stays open here: without any reader the master would report a hang-up.
        self._keep(master)
        self._keep(slave)
        self.path = os.ttyname(slave)
        terminal.set_raw(slave)
        fcntl.fcntl(master, fcntl.F_SETFL, fcntl.fcntl(master, fcntl.F_GETFL) | os.O_NONBLOCK)
        return master

    def _listen(self, path: str) -> int:
        import _socket

        check_socket_path(path)
        listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        try:
            _remove_stale(path)
            listener.bind(path)
            listener.listen(1)
        except OSError as error:
            listener.close()
            raise cannot_listen(path, error.strerror) from error
        listener.setblocking(False)
        self._socket = listener
        return listener.fileno()


def _is_terminal(fd: int) -> bool:
    try:
        return os.isatty(fd)
    except OSError:
        return False


def _open_journal(fd: int) -> int:
    """A stream of our own to the journal that ``fd`` leads to; -1 when it leads elsewhere.

    In the stream that a service is given a line that begins with "<0>" is an emergency, shown on
    every terminal of the host. A guest shall not be able to do that.
    """
    import stat

    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        return -1
    import _socket

    given = _socket.socket(fileno=os.dup(fd))
    link = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        peer = given.getpeername()
        if not isinstance(peer, str) or not peer.startswith(JOURNAL_PREFIX):
            return -1
        link.connect(peer)
        link.sendall(JOURNAL_HEADER)
        return link.detach()
    except OSError:
        return -1
    finally:
        given.close()
        link.close()


def _open_file(path: str) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
    except OSError as error:
        raise cannot_open_file(path, error.strerror) from error


def check_socket_path(path: str) -> None:
    """HostError when it is longer than a socket's address can be."""
    length = len(os.fsencode(path))
    if length > SUN_PATH_MAX:
        raise HostError(
            f"the console socket {path} has a path of {length} bytes; {SUN_PATH_MAX} are possible",
            "use a shorter path",
        )


def cannot_listen(path: str, why: str | None) -> HostError:
    """The error for a console's socket that cannot be made."""
    return HostError(
        f"cannot listen on the console socket {path}: {why}",
        "check its directory, or that no other program uses it",
    )


def cannot_open_file(path: str, why: str | None) -> HostError:
    """The error for a console's file that cannot be opened."""
    return HostError(
        f"cannot open the console file {path}: {why}", "check its directory and permissions"
    )


def _remove_stale(path: str) -> None:
    """Remove a socket file that nobody answers on; leave everything else alone."""
    import _socket
    import stat

    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return
    except FileNotFoundError:
        return
    probe = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        probe.connect(path)
    except ConnectionRefusedError:
        os.unlink(path)
    finally:
        probe.close()
