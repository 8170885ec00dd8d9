"""The host's end of a guest console: terminal, file, pseudo-terminal, socket, or nothing.

It lives as long as the process, so that a guest's reboot keeps its console.
"""

from __future__ import annotations

import os
import time

from vmm._native.console.byteport import BytePort
from vmm.errors import HostError, about
from vmm.light.teardown import close_all
from vmm.log.hub import get_logger
from vmm.log.stream import is_terminal, open_anew, open_output

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from vmm.host.terminal import Terminal
    from vmm.settings.config import Config
    from vmm.settings.parse import Endpoint

log = get_logger(__name__)

TTY = "tty"
NULL = "null"
FILE = "file"
PTY = "pty"
SOCKET = "socket"
# Where systemd connects a service's output, which is "/run/systemd/journal/stdout" or, in a
# journal namespace, the like.
JOURNAL_PREFIX = "/run/systemd/journal"
# journald's stream protocol: identifier, unit (journald knows it), priority info; no "<N>" at the
# beginning of lines, no copies to syslog, kernel log and console. A line each.
JOURNAL_HEADER = b"vllmd-guest\n\n6\n0\n0\n0\n0\n"
FLUSH_STEP_SECONDS = 0.001


def open_consoles(config: Config, escape_fd: int) -> list[HostConsole]:
    """The guest's console and its serial port, not started yet. Raises VmmError.

    Two on one terminal share its input: one has it, and Ctrl-A c switches.
    """
    refuse_overwriting(config)
    console = _open("CONSOLE", config.console, escape_fd)
    try:
        shared = console.terminal is not None and config.serial.kind == TTY
        serial = _open("SERIAL", config.serial, escape_fd, typed=not shared)
    except BaseException:
        console.close()
        raise
    if shared:
        from vmm.host.terminal import HVC0, TTYS0, input_told, serial_has_input

        first = serial_has_input(config.cmdline)
        told = [f"[{input_told(name)}]\n".encode() for name in (HVC0, TTYS0)]
        console.port.share_input(serial.port, first, *told)
        console.told.append(input_told(TTYS0 if first else HVC0))
    return [console, serial]


def _open(setting: str, end: Endpoint, escape_fd: int, typed: bool = True) -> HostConsole:
    try:
        return HostConsole(end.kind, end.path, escape_fd, end, typed)
    except HostError as error:
        raise about(setting, error) from error


class HostConsole:
    """One console. Everything here belongs to the control thread.

    ``port`` is what guest devices attach to; ``path`` names the pty, file or socket; ``end`` has
    a file's limits. With a terminal as stdin (and ``typed``) the terminal is in raw mode from
    start() to close(), Ctrl-C goes to the guest, and Ctrl-A x writes ``escape_fd``.
    """

    def __init__(
        self,
        kind: str,
        path: str = "",
        escape_fd: int = -1,
        end: Endpoint | None = None,
        typed: bool = True,
    ) -> None:
        self.kind = kind
        self.path = path
        self.terminal: Terminal | None = None
        # What the terminal's user is told at the start.
        self.told: list[str] = []
        self._told_loss = 0
        self._fds: list[int] = []
        self._socket: Any = None
        self._socket_file: tuple[int, int] | None = None
        in_fd = out_fd = listen_fd = -1
        if kind == TTY:
            out_fd = self._open_stdout()
            if typed and is_terminal(0):
                from vmm.host.terminal import Terminal

                self.terminal = Terminal()
                in_fd = self.terminal.fd
        elif kind == FILE:
            out_fd = self._keep(_open_file(path))
        elif kind == PTY:
            in_fd = out_fd = self._open_pty()
        elif kind == SOCKET:
            listen_fd = self._listen(path)
        self.port = BytePort(in_fd, out_fd, listen_fd)
        if self.terminal is not None:
            self.port.set_keys(escape_fd, self.terminal.help_text, self.terminal.notice_fd)
            self.told.append(self.terminal.keys_told)
        if kind == FILE and end is not None and end.max_bytes:
            self.port.limit_file(os.fsencode(os.path.realpath(path)), end.max_bytes, end.keep)

    def _keep(self, fd: int) -> int:
        self._fds.append(fd)
        return fd

    def _open_stdout(self) -> int:
        own = _open_journal(1)
        if own < 0:
            own = open_anew(1)
        return 1 if own < 0 else self._keep(own)

    def start(self, name: str) -> None:
        """Switch the terminal to raw mode, tell its user the keys, and start pumping."""
        if self.terminal is not None:
            if not self.take_terminal():
                self.told.append(self.terminal.background_told)
            self.port.tell(f"[{'; '.join(self.told)}]\n".encode())
        self.port.start(name)

    def take_terminal(self) -> bool:
        """Make the terminal raw, if there is one; False while another job has it."""
        return self.terminal is None or self.terminal.take()

    def size(self) -> tuple[int, int]:
        """(columns, rows) of the terminal that shows it, (0, 0) when there is none."""
        if self.kind != TTY or not is_terminal(1):
            return 0, 0
        try:
            size = os.get_terminal_size(1)
        except OSError:
            return 0, 0  # it has just hung up
        return size.columns, size.lines

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

    def close(self) -> None:
        """Write out what is left (for at most a second), restore the terminal; idempotent."""
        steps: list[Callable[[], object]] = [self.port.close]
        if self.terminal is not None:
            steps.append(self.terminal.close)
        close_all([*steps, self._tell_loss, self._close_fds, self._close_socket])

    def _tell_loss(self) -> None:
        # A socket or a pseudo-terminal may well have had no reader at all.
        lost, self._told_loss = self.port.dropped - self._told_loss, self.port.dropped
        if lost and self.kind in (TTY, FILE):
            log.warning(
                f"{lost} bytes of the guest's output to {self.path or 'the terminal'} were lost: "
                "nobody took them in time"
            )

    def _close_fds(self) -> None:
        fds, self._fds = self._fds, []
        for fd in fds:
            os.close(fd)

    def _close_socket(self) -> None:
        if self._socket is None:
            return
        from vmm.host.console_socket import take_away

        self._socket.close()
        self._socket = None
        take_away(self.path, self._socket_file)

    def status(self) -> dict[str, object]:
        """Facts for `status`."""
        facts = {"kind": self.kind, "path": self.path, "dropped": self.port.dropped}
        return {**facts, "refused": self.port.refused} if self.kind == SOCKET else facts

    def _open_pty(self) -> int:
        from vmm._native.console import terminal

        master, slave = os.openpty()
        # The slave stays open here: without any reader the master would report a hang-up.
        self._keep(master)
        self._keep(slave)
        self.path = os.ttyname(slave)
        # devpts lets the group tty write to terminals; this one leads into a guest.
        os.fchmod(slave, 0o600)
        terminal.set_raw(slave)
        os.set_blocking(master, False)
        return master

    def _listen(self, path: str) -> int:
        from vmm.host.console_socket import identity, listen

        self._socket = listen(path)
        self._socket_file = identity(path)
        fd: int = self._socket.fileno()
        return fd


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
        return open_output(path)
    except OSError as error:
        raise cannot_open_file(path, error.strerror) from error


def cannot_open_file(path: str, why: str | None) -> HostError:
    """The error for a console's file that cannot be opened."""
    return HostError(
        f"cannot open the console file {path}: {why}", "check its directory and permissions"
    )


def refuse_overwriting(config: Config) -> None:
    """HostError when a full console file would be renamed over a file that the VM needs."""
    from vmm.host.roles import FIELDS, named_files

    for end in (config.console, config.serial):
        if end.kind != FILE:
            continue
        files = named_files({field: getattr(config, field) for field in FIELDS})
        if taken := overwritten(end, files):
            raise cannot_rotate(end.path, taken)


def overwritten(end: Endpoint, files: Sequence[str]) -> str:
    """Which of ``files`` a console's file would be renamed to when it is full; "" for none."""
    if end.kind != FILE or not (end.max_bytes and end.keep):
        return ""
    path = os.path.realpath(end.path)
    names = [f"{path}.new", *[f"{path}.{n}" for n in range(1, end.keep + 1)]]
    for file in files:
        if os.path.realpath(file) in names or os.path.abspath(file) in names:
            return file
    return ""


def cannot_rotate(path: str, taken: str) -> HostError:
    """The error for a console's file whose full ones would replace a file of the VM's."""
    return HostError(
        f"the console file {path}, once full, would be renamed over {taken}",
        "give another path, or max=0",
    )
