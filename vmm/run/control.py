"""The control socket: one JSON line to the instance, one line back.

Requests are ``{"command": "status"}``, ``{"command": "stop", "now": false}`` and ``{"command":
"vcpus"}``, which answers with registers, code and last exits of the first vCPUs as text. ``attach``
makes the connection one that stays (vmm/run/attach). Only root and the user who runs the instance
are answered; the kernel says who calls (unix(7), SO_PEERCRED).
Whatever a client sends, or leaves unsaid, the guest goes on; and whoever answers may lie, stall, or
send anything.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import time

from vmm.errors import HostError
from vmm.light import jsontext
from vmm.log.hub import get_logger

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from vmm.run.eventloop import EventLoop, Timer

log = get_logger(__name__)

REQUEST_MAX = 4096
REPLY_MAX = 4 << 20
CONNECTIONS_MAX = 16
BACKLOG = 64
# So long a client has from its call to the last byte of its answer.
CONNECTION_SECONDS = 5.0
# So long nobody is answered when not even a client can be turned away.
PAUSE_SECONDS = 1.0
ANSWER_SECONDS = 10.0
# struct ucred: pid, uid, gid.
UCRED = struct.Struct("iII")


class Keep:
    """An answer that keeps the connection: ``take`` has its descriptor from then on."""

    def __init__(self, take: Callable[[int], None]) -> None:
        self.take = take


class ControlServer:
    """Listens while the instance runs; everything happens on the control thread."""

    def __init__(
        self, path: str, loop: EventLoop, handle: Callable[[dict[str, Any]], dict[str, Any] | Keep]
    ) -> None:
        import _socket

        self._path = path
        self._loop = loop
        self._handle = handle
        # In the order of their calls.
        self._connections: dict[int, _Connection] = {}
        kind = _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK
        self._listener = _socket.socket(_socket.AF_UNIX, kind)
        try:
            # The instance's lock is ours, so a socket that is there was left by a dead process.
            if os.path.lexists(path):
                os.unlink(path)
            self._listener.bind(path)
            self._listener.listen(BACKLOG)
        except OSError as error:
            self._listener.close()
            raise HostError(
                f"cannot make the control socket {path}: {error.strerror}",
                "check the folder's permissions and that its disk has room",
            ) from error
        # Given up for a moment to turn a client away when there are no descriptors left: one that
        # stays in the queue would wake the loop again and again.
        self._spare = _spare()
        self._pause: Timer | None = None
        self._listen()

    def _listen(self) -> None:
        self._loop.add(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        try:
            fd, _ = self._listener._accept()  # type: ignore[attr-defined]
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self._turn_away(error)
            return
        try:
            self._welcome(fd)
        except OSError as error:
            log.warning(f"control connection refused: {error}")
            self._loop.remove(fd)
            self._connections.pop(fd, None)
            os.close(fd)

    def _welcome(self, fd: int) -> None:
        """Take a client; among too many, the one that called first has had its time."""
        import _socket

        os.set_blocking(fd, False)
        link = _socket.socket(fileno=fd)
        try:
            pid, uid = peer(link)
        finally:
            link.detach()
        if uid not in (0, os.geteuid()):
            who = f"process {pid}" if pid else "a process of another pid namespace"
            log.warning(f"control connection of {who} (user {uid}) refused")
            os.close(fd)
            return
        if len(self._connections) >= CONNECTIONS_MAX:
            self._drop(next(iter(self._connections)))
        self._loop.add(fd, lambda: self._serve(fd))
        timer = self._loop.call_later(CONNECTION_SECONDS, lambda: self._drop(fd))
        self._connections[fd] = _Connection(fd, timer)

    def _turn_away(self, error: OSError) -> None:
        log.warning(f"control connection refused: {error.strerror}; raise LimitNOFILE")
        try:
            if self._spare >= 0:
                os.close(self._spare)
                self._spare = -1
            os.close(self._listener._accept()[0])  # type: ignore[attr-defined]
        except OSError as again:
            log.debug(f"nobody to turn away: {again}")
        try:
            self._spare = _spare()
        except OSError:
            # Somebody else was quicker, and has our last one.
            self._loop.remove(self._listener.fileno())
            self._pause = self._loop.call_later(PAUSE_SECONDS, self._listen)

    def _serve(self, fd: int) -> None:
        connection = self._connections[fd]
        if not connection.answer:
            request = connection.receive()
            if request is None:
                return
            if request:
                answer = self._answer(request)
                if isinstance(answer, Keep):
                    self._hand_over(fd, answer)
                    return
                connection.answer = answer
                self._loop.remove(fd)
                self._loop.add(fd, lambda: self._serve(fd), writable=True)
        if connection.deliver():
            self._drop(fd)

    def _hand_over(self, fd: int, answer: Keep) -> None:
        self._connections.pop(fd).timer.cancel()
        self._loop.remove(fd)
        answer.take(fd)

    def _answer(self, request: bytes) -> bytes | Keep:
        """The answer, as a line. No request ends the guest, nor does what fails inside of it."""
        try:
            answer = self._handle(jsontext.loads(request))
            if isinstance(answer, Keep):
                return answer
        except ValueError as error:
            answer = {"error": f"not a JSON object that is understood: {error}"[:REQUEST_MAX]}
        except Exception as error:
            log.warning(f"a control request failed: {error!r}")
            answer = {"error": str(error)}
        try:
            return jsontext.dumps(answer).encode() + b"\n"
        except (TypeError, ValueError, RecursionError) as error:
            log.warning(f"the answer to a control request has no form: {error!r}")
            return jsontext.dumps({"error": str(error)}).encode() + b"\n"

    def _drop(self, fd: int) -> None:
        connection = self._connections.pop(fd, None)
        if connection is not None:
            connection.timer.cancel()
            self._loop.remove(fd)
            os.close(fd)

    def close(self) -> None:
        """Close all connections and remove the socket."""
        for fd in list(self._connections):
            self._drop(fd)
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove(self._listener.fileno())
        self._listener.close()
        if self._spare >= 0:
            os.close(self._spare)
        try:
            os.unlink(self._path)
        except FileNotFoundError:
            return


def _spare() -> int:
    return os.eventfd(0, os.EFD_CLOEXEC)


class _Connection:
    """One client, from its call to the last byte of our answer. ``timer`` ends it."""

    def __init__(self, fd: int, timer: Timer) -> None:
        self.timer = timer
        self.answer = b""
        self._fd = fd
        self._received = b""

    def receive(self) -> bytes | None:
        """The request line; None while it is incomplete; empty when the client is to be dropped."""
        try:
            data = os.read(self._fd, REQUEST_MAX)
        except BlockingIOError:
            return None
        except OSError:
            return b""
        self._received += data
        line, newline, _ = self._received.partition(b"\n")
        if newline:
            return bytes(line) or b"null"
        if not data or len(self._received) > REQUEST_MAX:
            return b""
        return None

    def deliver(self) -> bool:
        """Send what the socket takes; True when all is sent, or nobody waits for it."""
        try:
            self.answer = self.answer[os.write(self._fd, self.answer) :] if self.answer else b""
        except BlockingIOError:
            return False
        except OSError as error:
            log.debug(f"control reply not delivered: {error}")
            return True
        return not self.answer


def ask(
    path: str,
    request: dict[str, Any],
    seconds: float = ANSWER_SECONDS,
    directory: int | None = None,
    owner: int | None = None,
) -> dict[str, Any]:
    """Send a request to a running instance and wait for its answer; OSError when there is none.

    With ``directory`` the socket is the one of that name in it. Nothing is said to a process of
    another user than ``owner``.
    """
    deadline = time.monotonic() + seconds
    link = connect(path, seconds, directory)
    try:
        pid, uid = peer(link)
        if owner is not None and uid != owner:
            raise PermissionError(f"{path}: process {pid} of user {uid} answers, not of {owner}")
        link.sendall(jsontext.dumps(request).encode() + b"\n")
        return _parsed(path, _receive(path, link, deadline))
    finally:
        link.close()


def peer_pid(directory: int, name: str, owner: int, seconds: float) -> int:
    """Who listens on that socket, by the kernel's word: 0 when no such process is to be seen here.

    OSError when nobody does, or another user than ``owner``.
    """
    link = connect(name, seconds, directory)
    try:
        pid, uid = peer(link)
    finally:
        link.close()
    if uid != owner:
        raise PermissionError(f"process {pid} of user {uid} listens, not of {owner}")
    return pid


def connect(path: str, seconds: float, directory: int | None) -> Any:
    """The connected socket, with that time-out; with ``directory`` the one of that name in it."""
    import _socket

    # By its inode: a path may become a link to another socket between two looks at it.
    found = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        if not stat.S_ISSOCK(os.fstat(found).st_mode):
            raise ConnectionRefusedError(f"{path} is not a socket")
        link = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        try:
            link.settimeout(seconds)
            link.connect(f"/proc/self/fd/{found}")
        except BaseException:
            link.close()
            raise
    finally:
        os.close(found)
    return link


def peer(link: Any) -> tuple[int, int]:
    """(pid, user) of whoever called, or made the listening socket that was called."""
    import _socket

    pid, uid, _gid = UCRED.unpack(
        link.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, UCRED.size)
    )
    return pid, uid


def _receive(path: str, link: Any, deadline: float) -> bytes:
    received = bytearray()
    while not received.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("no whole answer in time")
        link.settimeout(left)
        data = link.recv(1 << 16)
        if not data:
            raise ConnectionResetError(f"{path}: the instance closed the connection")
        received += data
        if len(received) > REPLY_MAX:
            raise ConnectionError(f"{path}: the answer is too long")
    return bytes(received)


def _parsed(path: str, answer: bytes) -> dict[str, Any]:
    try:
        return jsontext.loads(answer)
    except ValueError as error:
        raise ConnectionError(f"{path}: the answer is not understood: {error}") from None
