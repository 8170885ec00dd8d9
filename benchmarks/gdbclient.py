"""The least that a debugger says to a gdb stub; the same to ours and to QEMU's.

Source: gdb's manual, appendix E (Remote Protocol).
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path

from vmm.debug.gdb.packets import encode

SECONDS = 30.0


class GdbError(Exception):
    """The stub does not do what a debugger needs."""


class GdbClient:
    """One connection to a stub on a unix socket."""

    def __init__(self, path: Path, alive: Callable[[], bool]) -> None:
        """``alive``: the stub's process still is, so that waiting for its socket makes sense."""
        self._socket = connected(path, alive)
        self._socket.settimeout(SECONDS)
        self._unread = b""
        self._acks = True
        self.ask("qSupported:swbreak+;hwbreak+")
        # QEMU's has it from version 8 on.
        self._acks = self.ask("QStartNoAckMode") != "OK"
        self.ask("?")

    def ask(self, packet: str) -> str:
        """The answer to one packet."""
        self._socket.sendall(encode(packet.encode()))
        while (end := self._unread.find(b"#")) < 0 or len(self._unread) < end + 3:
            try:
                some = self._socket.recv(1 << 16)
            except TimeoutError:
                raise GdbError(f"no answer to {packet} within {SECONDS:g} s") from None
            if not some:
                raise GdbError(f"the stub went away at {packet}")
            self._unread += some
        answer, self._unread = self._unread[:end], self._unread[end + 3 :]
        if self._acks:
            self._socket.sendall(b"+")
        return answer[answer.index(b"$") + 1 :].decode()

    def expect(self, packet: str, wanted: str) -> None:
        """GdbError unless the answer begins so."""
        answer = self.ask(packet)
        if not answer.startswith(wanted):
            raise GdbError(f"{packet} gives {answer[:40] or 'nothing'}, not {wanted}")

    def come_to(self, address: int) -> None:
        """Run to a hardware breakpoint, which is gone afterwards."""
        self.expect(f"Z1,{address:x},1", "OK")
        self.expect("c", "T05")
        self.expect(f"z1,{address:x},1", "OK")

    def hit(self, address: int) -> None:
        """Stand at ``address``, go on, and come back to its breakpoint: as gdb does it."""
        self.expect("s", "T05")
        self.expect(f"Z1,{address:x},1", "OK")
        self.expect("c", "T05")
        self.expect(f"z1,{address:x},1", "OK")

    def step(self) -> None:
        """One instruction."""
        self.expect("s", "T05")

    def registers(self) -> None:
        """All general registers."""
        if len(self.ask("g")) < 16 * 17:
            raise GdbError("g gives too few registers")

    def close(self) -> None:
        """Hang up."""
        self._socket.close()


def connected(path: Path, alive: Callable[[], bool]) -> socket.socket:
    """A connection, as soon as somebody listens there."""
    deadline = time.monotonic() + SECONDS
    while True:
        client = socket.socket(socket.AF_UNIX)
        try:
            client.connect(str(path))
        except OSError as error:
            client.close()
            if time.monotonic() > deadline or not alive():
                raise GdbError(f"nobody listens at {path.name}: {error.strerror}") from error
            time.sleep(0.02)
        else:
            return client
