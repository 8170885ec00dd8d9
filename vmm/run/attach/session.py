"""One connection of somebody attached: requests in, answers out, whatever comes or is not read.

While an answer waits for its reader no further request is read, so both buffers are bounded. All on
the control thread.
"""

from __future__ import annotations

import os
import select
from contextlib import suppress

from vmm import __version__
from vmm.errors import VmmError
from vmm.light import jsontext
from vmm.log.hub import get_logger
from vmm.run.attach import answers, trace
from vmm.run.attach.wire import LINE_MAX, PROTOCOL, READ_MAX, WRITE_MAX, message
from vmm.run.control import peer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from vmm.run.attach.parts import Owner

log = get_logger(__name__)

RECEIVE_BYTES = 1 << 16
# What a request that makes no sense raises, here or in the ioctl's wrapper.
REFUSED = (VmmError, OSError, ValueError, TypeError, KeyError, OverflowError, LookupError)


class Session:
    """``fd`` is the connection, which it closes. ``write``: it may change the guest."""

    def __init__(self, fd: int, write: bool, owner: Owner) -> None:
        self.write = write
        self.owner = owner
        self.machine = owner.machine
        self.rings: list[Any] = []
        self.name = "somebody"
        self._fd = fd
        self._process = -1
        self._received = b""
        self._unsent = memoryview(b"")
        self._writable = False

    def greet(self) -> None:
        """Say what there is, with a descriptor of guest RAM where it is shared."""
        import _socket

        link = _socket.socket(fileno=self._fd)
        try:
            # As much as the host allows: else a piece of RAM goes in many small ones.
            link.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDBUF, READ_MAX)
            pid, uid = peer(link)
            self.name = f"process {pid} (user {uid})" if pid else f"a process of user {uid}"
            self._send_greeting(link)
            self.owner.loop.add(self._fd, self._ready)
            self._watch(pid)
        except OSError as error:
            log.warning(f"{self.name} could not attach: {error}")
            self.end(f"it could not attach: {error.strerror}")
            return
        except Exception as error:
            self._failed(error)
            return
        finally:
            link.detach()
        log.info(f"{self.name} attached" + (", to write" if self.write else ""))

    def _watch(self, pid: int) -> None:
        """The process ends it, too: a child of his may have inherited the connection."""
        try:
            self._process = os.pidfd_open(pid)
        except OSError as error:
            log.debug(f"{self.name} is not to be seen here: {error}")  # in another pid namespace
        else:
            self.owner.loop.add(self._process, self._process_ended)

    def _process_ended(self) -> None:
        poll = select.poll()
        poll.register(self._process, select.POLLIN)
        # The loop may mean an older descriptor of that number, closed a moment ago.
        if poll.poll(0):
            self.end()

    def _send_greeting(self, link: Any) -> None:
        import _socket
        from struct import pack

        ram = answers.ram_descriptor(self.machine.memory, self.write)
        try:
            line = message(
                {"protocol": PROTOCOL, "version": __version__, **answers.greeting(self.machine)}
            )
            rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, pack("i", ram))] if ram >= 0 else []
            # Nothing else is under way on it, so there is room for all.
            if link.sendmsg([line], rights) < len(line):
                raise BlockingIOError(11, "its socket has no room")
        finally:
            if ram >= 0:
                os.close(ram)

    def _ready(self) -> None:
        try:
            if self._unsent:
                self._send()
            elif not self._receive():
                self.end()
                return
            while not self._unsent and (asked := self._next()) is not None:
                self._unsent = memoryview(self._answer(*asked))
                self._send()
        except OSError as error:
            log.debug(f"{self.name}: {error}")
            self.end()
        except ValueError as error:
            self.end(f"not understood: {error}"[:LINE_MAX])
        except Exception as error:
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        """Nothing that goes wrong here is the guest's business."""
        log.warning(f"{self.name}: {error!r}")
        self.end("its request failed: see the instance's log")

    def _receive(self) -> bool:
        """False at the end of the connection."""
        try:
            data = os.read(self._fd, RECEIVE_BYTES)
        except BlockingIOError:
            return True
        self._received += data
        return bool(data)

    def _next(self) -> tuple[dict[str, Any], bytes] | None:
        """(request, its bytes); None until it is whole. ValueError for what is none."""
        line, newline, rest = self._received.partition(b"\n")
        if len(line) > LINE_MAX:
            raise ValueError("a line that is too long")
        if not newline:
            return None
        request = jsontext.loads(line)
        count = request.get("bytes", 0)
        if type(count) is not int or not 0 <= count <= WRITE_MAX:
            raise ValueError(f"bytes={str(count)[:20]}: at most {WRITE_MAX}")
        if len(rest) < count:
            return None
        self._received = rest[count:]
        return request, rest[:count]

    def _answer(self, request: dict[str, Any], data: bytes) -> bytes:
        """The answer, as it is sent. No request ends the guest, nor does what fails inside it."""
        try:
            return message(*answers.answer(self, request, data))
        except REFUSED as error:
            problem = error.problem if isinstance(error, VmmError) else str(error)
            remedy = error.remedy if isinstance(error, VmmError) else ""
            return message({"error": f"{problem}"[:LINE_MAX], "remedy": remedy})
        except Exception as error:
            log.warning(f"a request of {self.name} failed: {error!r}")
            return message({"error": repr(error)[:LINE_MAX]})

    def _send(self) -> None:
        with suppress(BlockingIOError):  # its reader takes its time
            self._unsent = self._unsent[os.write(self._fd, self._unsent) :]
        wants = bool(self._unsent)
        if wants != self._writable:
            self._writable = wants
            self.owner.loop.remove(self._fd)
            self.owner.loop.add(self._fd, self._ready, writable=wants)

    def end(self, why: str = "") -> None:
        """Close it; what it held goes on. ``why`` is told, as far as there is room. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        self.owner.loop.remove(fd)
        if why and not self._unsent:
            try:
                os.write(fd, message({"over": why}))
            except OSError as error:
                log.debug(f"{self.name} was not told: {error}")
        os.close(fd)
        if self._process >= 0:
            self.owner.loop.remove(self._process)
            os.close(self._process)
        self.owner.ended(self)
        trace.stop(self)
        log.info(f"{self.name} detached" + (f": {why}" if why else ""))
