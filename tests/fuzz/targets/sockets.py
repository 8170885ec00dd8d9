"""What comes in by the control socket, and from somebody attached: lines, numbers, bytes."""

from __future__ import annotations

import json
import os
import socket
from contextlib import suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from tests.fuzz.target import Dice, PythonTarget
from tests.unit.run.test_attach import FakeVcpu
from vmm._native.memory.guestmem import GuestMemory
from vmm.run.attach import answers, door
from vmm.run.attach.wire import READ_MAX, WRITE_MAX
from vmm.run.control import REPLY_MAX, ControlServer
from vmm.run.eventloop import EventLoop

if TYPE_CHECKING:
    from pathlib import Path

MEMORY = 4 << 20


class SteppedLoop:
    """An event loop that serves what is there, and comes back."""

    def __init__(self) -> None:
        self.loop = EventLoop()
        # Always readable: no wait has to be waited for.
        self._ready = os.eventfd(1)
        self.loop.add(self._ready, lambda: None)

    def serve(self, rounds: int = 3) -> None:
        """So many rounds."""
        left = [rounds]

        def done() -> bool:
            left[0] -= 1
            return left[0] < 0

        self.loop.run_until(done)

    def close(self) -> None:
        """Give it back."""
        self.loop.remove(self._ready)
        os.close(self._ready)
        self.loop.close()


class Control(PythonTarget):
    """Any bytes in any pieces: an answer for a line, and the next client is served as ever."""

    name = "control"
    plants = ("unchecked",)
    quick = 300
    bases = (
        b'{"command": "status"}\n',
        b'{"command": "stop", "now": false}\n',
        b'{"command": "attach", "protocol": 1, "write": true}\n',
        b'{"command": "vcpus", "x": [1, 2.5, null, "\\u0041"]}\n',
    )

    def plant(self, fault: str) -> None:
        """A request that cannot be read is nobody's business."""
        usual = ControlServer._answer

        def answer(self: Any, request: bytes) -> Any:
            self._handle(json.loads(request))
            return usual(self, request)

        ControlServer._answer = answer

    def begin(self, folder: Path) -> None:
        """As PythonTarget."""
        self._stepped = SteppedLoop()
        self._path = str(folder / "control")
        self._server = ControlServer(self._path, self._stepped.loop, lambda asked: {"got": asked})

    def end(self) -> None:
        """As PythonTarget."""
        self._server.close()
        self._stepped.close()

    def one(self, dice: Dice) -> None:
        """As PythonTarget."""
        data = dice.mutated(dice.choice(self.bases))
        if dice.chance(50):
            data = data.replace(b"\n", b"") * 200
        answer = self._ask(dice, data)
        if answer:
            assert isinstance(json.loads(answer), dict)
        good = dice.randrange(1000)
        asked = b'{"n": %d}\n' % good
        assert json.loads(self._ask(dice, asked)) == {"got": {"n": good}}
        assert not self._server._connections

    def _ask(self, dice: Dice, data: bytes) -> bytes:
        with socket.socket(socket.AF_UNIX) as link:
            link.connect(self._path)
            link.setblocking(False)
            self._stepped.serve(2)
            while data:
                size = dice.choice((1, 7, len(data), len(data)))
                with suppress(OSError):  # it was told enough, and has closed
                    link.send(data[:size])
                data = data[size:]
                self._stepped.serve(2)
            answer = b""
            with suppress(BlockingIOError, ConnectionError):
                answer = link.recv(REPLY_MAX)
        self._stepped.serve(3)
        return answer


class Attach(PythonTarget):
    """Requests of somebody attached, and what is none: nothing is held, kept or open afterwards."""

    name = "attach"
    plants = ("unchecked",)
    quick = 200
    words = ("cpu", "gpa", "length", "index", "value", "what", "indices", "regs", "sregs", "bytes",
             "kinds", "size")  # fmt: skip

    def plant(self, fault: str) -> None:
        """Whoever goes away is not forgotten."""
        door.Attachments.ended = lambda self, session: None

    def begin(self, folder: Path) -> None:
        """As PythonTarget."""
        self._stepped = SteppedLoop()
        self._memory = GuestMemory([(0, MEMORY)], shared=True)
        self._vcpus = [FakeVcpu(0), FakeVcpu(1)]
        machine: Any = SimpleNamespace(
            memory=self._memory, vcpus=self._vcpus, virtio=[],
            config=SimpleNamespace(kernel_path="/k", gdb=None),
            pio=SimpleNamespace(ranges=lambda: [(1, 2, "a")]), mmio=SimpleNamespace(ranges=list),
        )  # fmt: skip
        self._attached = door.Attachments(machine, self._stepped.loop)
        self._files = len(os.listdir("/proc/self/fd"))

    def end(self) -> None:
        """As PythonTarget."""
        self._attached.close()
        self._stepped.close()
        self._memory.close()

    def one(self, dice: Dice) -> None:
        """As PythonTarget."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        with ours:
            self._attached.take(theirs.detach(), dice.chance(2))
            data, files, _, _ = socket.recv_fds(ours, 1 << 16, 4)
            for fd in files:
                os.close(fd)
            assert json.loads(data)["vcpus"] == 2
            sent = b"".join(self._request(dice) for _ in range(dice.randrange(1, 5)))
            if dice.chance(3):
                sent = dice.mutated(sent[:4000])
            dice.input = sent
            with suppress(OSError):
                ours.send(sent)
            self._stepped.serve(8)
            self._look_at(ours)
        self._stepped.serve(4)
        assert self._attached.count == 0, "somebody who went away is still there"
        assert not any(vcpu.held for vcpu in self._vcpus), "the guest is held by nobody"
        assert self._attached.tracer is None
        assert len(os.listdir("/proc/self/fd")) == self._files, "descriptors left behind"

    def _request(self, dice: Dice) -> bytes:
        data = bytes(dice.choice((0, 0, 1, 100, WRITE_MAX, WRITE_MAX + 1)))
        asked: dict[str, Any] = {"command": dice.choice((*answers.COMMANDS, "none", 5, None))}
        for word in self.words:
            if dice.chance(2):
                asked[word] = self._value(dice)
        asked["bytes"] = len(data)
        return json.dumps(asked).encode() + b"\n" + data

    def _value(self, dice: Dice) -> Any:
        return dice.choice((
            0, 1, -1, dice.integer(), dice.randrange(MEMORY), dice.randrange(5000), READ_MAX, None,
            True, "xsave", "events", "lapic", "x" * 50, [], [1, 2], [dice.integer()] * 70,
            {"rax": dice.integer()}, {"x": []}, 1.5,
        ))  # fmt: skip

    def _look_at(self, link: socket.socket) -> None:
        received = b""
        with suppress(BlockingIOError, ConnectionError):
            while more := link.recv(1 << 20):
                received += more
                self._stepped.serve(2)
        while received:
            line, newline, received = received.partition(b"\n")
            assert newline or not received
            told = json.loads(line)
            assert isinstance(told, dict)
            received = received[told.get("bytes", 0) :]


TARGETS = (Control(), Attach())
