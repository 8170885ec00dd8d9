"""The connection to an instance whose guest is looked at.

Whoever answers may be of another version, broken, or send anything: an answer has its time and its
size, and what is not understood ends the connection with an error.
"""

from __future__ import annotations

import os
import select
import threading
import time
from typing import TYPE_CHECKING, Any

from vmm.errors import BusyError, HostError, VmmError
from vmm.light import jsontext
from vmm.light.printable import visible
from vmm.run.attach.wire import PROTOCOL, READ_MAX, message
from vmm.run.control import REPLY_MAX, connect, peer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Protocol

    class Place(Protocol):
        """The folder of the instance."""

        name: str
        fd: int
        uid: int


CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 30.0
RECEIVE_BYTES = 1 << 19
TOLD_MAX = 500
BROKEN = (OSError, ValueError, TypeError)


class Link:
    """One connection. Any thread: a request and its answer are one, the next one waits.

    What is raised in the middle of a request closes it: the answer to come would be another's.
    """

    def __init__(self, folder: Place, control: str, write: bool = False) -> None:
        self.name = folder.name
        self._lock = threading.RLock()
        self._received = bytearray()
        self._why = "it was closed here"
        self._socket = self._connect(folder, control)
        self._poll = select.poll()
        self._poll.register(self._socket.fileno(), select.POLLIN)
        self._deadline = 0.0
        self.ram_fd = -1
        try:
            asked = {"command": "attach", "protocol": PROTOCOL, "write": write}
            ((self.greeting, _),) = self._asked(message(asked), 1, self._receive_rights)
            if self.greeting.get("protocol") != PROTOCOL:
                raise self._error(
                    f"it speaks protocol {str(self.greeting.get('protocol'))[:20]}, not {PROTOCOL}",
                    "attach with its own version",
                )
        except BaseException:
            self.close()
            raise

    def _connect(self, folder: Place, control: str) -> Any:
        try:
            link = connect(control, CONNECT_SECONDS, folder.fd)
        except OSError as error:
            raise self._error(f"its control socket does not answer: {error.strerror}") from error
        try:
            _, uid = peer(link)
            if uid != folder.uid:
                raise self._error(f"a process of user {uid} answers, not of {folder.uid}")
        except BaseException:
            link.close()
            raise
        return link

    def nonsense(self, what: str) -> HostError:
        """The error for an answer that cannot be true; it is closed then."""
        self.close(f"its answer is not understood: {what}")
        return self._error(self._why, "attach again")

    def _error(self, problem: str, remedy: str = "see `vllmd-hypervisor status`") -> HostError:
        return HostError(f"the instance {self.name}: {problem}", remedy)

    @property
    def closed(self) -> bool:
        """It is of no use any more."""
        return self._socket is None

    def ask(self, command: str, data: bytes = b"", **asked: Any) -> tuple[dict[str, Any], bytes]:
        """(what is told, bytes behind it). HostError when it is refused or nobody answers."""
        return self.ask_all([{"command": command, **asked}], data)[0]

    def ask_all(
        self, requests: Sequence[dict[str, Any]], data: bytes = b""
    ) -> list[tuple[dict[str, Any], bytes]]:
        """The answers to several requests that are sent together; ``data`` goes with each."""
        return self._asked(b"".join([message(each, data) for each in requests]), len(requests))

    def _asked(
        self, asked: bytes, count: int, receive: Callable[[], bytes] | None = None
    ) -> list[tuple[dict[str, Any], bytes]]:
        with self._lock:
            self._open()
            try:
                self._look()
                self._deadline = time.monotonic() + ANSWER_SECONDS
                self._socket.settimeout(ANSWER_SECONDS)
                self._socket.sendall(asked)
                found = [self._answer(receive or self._receive) for _ in range(count)]
            except BROKEN as error:
                raise self._broken(error) from error
            except BaseException:
                self.close("a request was interrupted")
                raise
        for told, _ in found:
            if "error" in told:
                raise self._refused(told)
        return found

    def _broken(self, error: Exception) -> HostError:
        """Close it; what is to be raised for what went wrong."""
        why = str(error)
        if isinstance(error, TimeoutError):
            why = f"it does not answer within {ANSWER_SECONDS:g} s"
        self.close(visible(why, TOLD_MAX) or type(error).__name__)
        return self._error(self._why, "attach again")

    def _refused(self, told: dict[str, Any]) -> VmmError:
        problem = f"the instance {self.name}: {visible(told['error'], TOLD_MAX)}"
        if str(told["error"]).startswith("unknown command 'attach'"):
            return HostError(
                f"the instance {self.name} runs a version that cannot be attached to",
                "stop it and start it with this one",
            )
        remedy = visible(told.get("remedy", ""), TOLD_MAX)
        return (BusyError if told.get("busy") is True else HostError)(problem, remedy)

    def check(self) -> None:
        """HostError when the guest, or the connection, is gone: for who asks nothing. Cheap."""
        with self._lock:
            self._open()
            try:
                self._look()
            except BROKEN as error:
                raise self._broken(error) from error

    def _open(self) -> None:
        if self._socket is None:
            raise self._error(self._why, "attach again")

    def _look(self) -> None:
        """Unasked it says but one thing: that it is over."""
        if self._received or self._poll.poll(0):
            self._deadline = time.monotonic() + CONNECT_SECONDS
            told, _ = self._answer(self._receive)
            raise ConnectionError(f"it said something that nobody asked for: {told}"[:TOLD_MAX])

    def _answer(self, receive: Callable[[], bytes]) -> tuple[dict[str, Any], bytes]:
        """The next message; ConnectionError when it is the last one."""
        while (end := self._received.find(b"\n")) < 0:
            if len(self._received) > REPLY_MAX:
                raise ConnectionError("its answer is too long")
            self._more(receive)
            receive = self._receive
        told = jsontext.loads(bytes(self._received[:end]))
        del self._received[: end + 1]
        if "over" in told:
            raise ConnectionResetError(visible(told["over"], TOLD_MAX))
        count = told.get("bytes", 0)
        if type(count) is not int or not 0 <= count <= READ_MAX:
            raise ConnectionError(f"its answer has bytes={str(count)[:20]}")
        while len(self._received) < count:
            self._more(self._receive)
        data = bytes(self._received[:count])
        del self._received[:count]
        return told, data

    def _more(self, receive: Callable[[], bytes]) -> None:
        data = receive()
        if not data:
            raise ConnectionResetError("the instance has closed the connection")
        self._received += data

    def _receive(self) -> bytes:
        self._socket.settimeout(max(self._deadline - time.monotonic(), 0.001))
        return bytes(self._socket.recv(RECEIVE_BYTES))

    def _receive_rights(self) -> bytes:
        """With the descriptor of guest RAM, if one comes; of more none is kept."""
        import _socket
        from struct import calcsize, unpack

        size = calcsize("i")
        flags = _socket.MSG_CMSG_CLOEXEC
        data, parts, _, _ = self._socket.recvmsg(RECEIVE_BYTES, _socket.CMSG_LEN(size), flags)
        found: list[int] = []
        for level, kind, rights in parts:
            if (level, kind) == (_socket.SOL_SOCKET, _socket.SCM_RIGHTS):
                count = len(rights) // size
                found += unpack(f"{count}i", rights[: count * size])
        if len(found) == 1:
            self.ram_fd = found.pop()
        for fd in found:
            os.close(fd)
        return bytes(data)

    def close(self, why: str = "it was closed here") -> None:
        """End it; the guest goes on if it was held from here. Idempotent."""
        with self._lock:
            link, self._socket = self._socket, None
            if link is not None:
                self._why = why
                link.close()
                fd, self.ram_fd = self.ram_fd, -1
                if fd >= 0:
                    os.close(fd)
