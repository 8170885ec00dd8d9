"""The control socket: one JSON line to the instance, one line back.

Requests are ``{"command": "status"}``, ``{"command": "stop", "now": false}`` and ``{"command":
"vcpus"}``, which answers with registers, code and last exits of the first vCPUs as text. Only root
and the user who runs the instance are answered; the kernel says who calls (unix(7), SO_PEERCRED).
"""

from __future__ import annotations

import errno
import os
import stat
import struct

from vmm.errors import HostError
from vmm.light import jsontext
from vmm.log.hub import get_logger

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from vmm.run.eventloop import EventLoop

log = get_logger(__name__)

REQUEST_MAX = 4096
REPLY_MAX = 1 << 20
CONNECTIONS_MAX = 16
BACKLOG = 8
# struct ucred: pid, uid, gid.
UCRED = struct.Struct("iII")
CLIENT_TIMEOUT_SECONDS = 10.0


class ControlServer:
    """Listens while the instance runs; everything happens on the control thread."""

    def __init__(
        self, path: str, loop: EventLoop, handle: Callable[[dict[str, Any]], dict[str, Any]]
    ) -> None:
        import _socket

        self._path = path
        self._loop = loop
        self._handle = handle
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
        loop.add(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        import _socket

        try:
            fd, _ = self._listener._accept()  # type: ignore[attr-defined]
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self._turn_away(error)
            return
        link = _socket.socket(fileno=fd)
        link.setblocking(False)
        credentials = link.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, UCRED.size)
        pid, uid, _gid = UCRED.unpack(credentials)
        if uid not in (0, os.geteuid()) or len(self._connections) >= CONNECTIONS_MAX:
            log.warning(f"control connection of process {pid} (user {uid}) refused")
            link.close()
            return
        self._connections[fd] = _Connection(link)
        self._loop.add(fd, lambda: self._serve(fd))

    def _turn_away(self, error: OSError) -> None:
        log.warning(f"control connection refused: {error.strerror}; raise LimitNOFILE")
        os.close(self._spare)
        try:
            os.close(self._listener._accept()[0])  # type: ignore[attr-defined]
        except OSError as again:
            log.debug(f"nobody to turn away: {again}")
        self._spare = _spare()

    def _serve(self, fd: int) -> None:
        connection = self._connections[fd]
        request = connection.receive()
        if request is None:
            return
        if request:
            connection.reply(self._answer(request))
        self._drop(fd)

    def _answer(self, request: bytes) -> dict[str, Any]:
        try:
            return self._handle(_parsed(request))
        except _BadRequest as error:
            return {"error": f"not a JSON object: {error}"}
        except OSError as error:
            # The guest goes on, whatever the host does not tell about it.
            log.warning(f"a control request failed: {error}")
            return {"error": str(error)}

    def _drop(self, fd: int) -> None:
        self._loop.remove(fd)
        self._connections.pop(fd).link.close()

    def close(self) -> None:
        """Close all connections and remove the socket."""
        for fd in list(self._connections):
            self._drop(fd)
        self._loop.remove(self._listener.fileno())
        self._listener.close()
        os.close(self._spare)
        try:
            os.unlink(self._path)
        except FileNotFoundError:
            return


def _spare() -> int:
    return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)


class _BadRequest(Exception):
    """What a client sent is not a JSON object."""


def _parsed(request: bytes) -> dict[str, Any]:
    import json

    try:
        parsed = json.loads(request)
    except ValueError as error:
        raise _BadRequest(str(error)) from None
    if not isinstance(parsed, dict):
        raise _BadRequest(f"a {type(parsed).__name__}")
    return parsed


class _Connection:
    """One client, from its request to our reply."""

    def __init__(self, link: Any) -> None:
        self.link = link
        self._received = b""

    def receive(self) -> bytes | None:
        """The request line; None while it is incomplete; empty when the client is to be dropped."""
        try:
            data = self.link.recv(REQUEST_MAX)
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

    def reply(self, answer: dict[str, Any]) -> None:
        """Send what fits into the socket's buffer (far more than an answer has)."""
        try:
            self.link.send(jsontext.dumps(answer).encode() + b"\n")
        except OSError as error:
            log.debug(f"control reply not delivered: {error}")


def ask(path: str, request: dict[str, Any]) -> dict[str, Any]:
    """Send a request to a running instance and wait for its answer; OSError when there is none."""
    import _socket
    import json

    if not stat.S_ISSOCK(os.stat(path).st_mode):
        raise ConnectionRefusedError(f"{path} is not a socket")
    link = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        link.settimeout(CLIENT_TIMEOUT_SECONDS)
        link.connect(path)
        link.sendall(json.dumps(request).encode() + b"\n")
        received = b""
        while not received.endswith(b"\n") and len(received) < REPLY_MAX:
            data = link.recv(1 << 16)
            if not data:
                raise ConnectionResetError(f"{path}: the instance closed the connection")
            received += data
    finally:
        link.close()
    answer = json.loads(received)
    if not isinstance(answer, dict):
        raise ConnectionError(f"{path}: the answer is not an object")
    return answer
