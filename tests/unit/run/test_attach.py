"""Whoever is attached: no request harms the instance, and no hold outlives who asked for it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from vmm._native.memory.guestmem import GuestMemory
from vmm.run.attach import door
from vmm.run.attach.door import Attachments, attach
from vmm.run.attach.wire import LINE_MAX, PROTOCOL, READ_MAX, WRITE_MAX
from vmm.run.control import Keep
from vmm.run.eventloop import EventLoop

PAGE = 4096
SIZE = 4 << 20


class FakeVcpu:
    """Stands still when it is told to, unless it is stubborn."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.stubborn = False
        self.held = False
        self.changed: dict[str, int] = {}
        self.fd = self
        self.loop = SimpleNamespace(set_trace=lambda ring: ring and ring.take(index))

    def hold(self, timeout_ms: int) -> bool:
        self.held = not self.stubborn
        return self.held

    def let_go(self) -> None:
        self.held = False

    def look(self, look):
        return None if self.stubborn else look()

    def kvmclock_ctrl(self) -> bool:
        raise OSError(22, "no clock of KVM's")

    def get_regs(self):
        return {"rax": 1 << 63, "rip": 2}

    def get_sregs(self):
        return {"cr0": 1, "gdt": (3, 4)}

    def set_regs(self, values):
        self.changed = dict(values)

    def get_msrs(self, indices):
        return [index for index in indices if index < 100]

    def set_msrs(self, pairs):
        return len(pairs)

    def get_vcpu_events(self):
        raise RuntimeError("what nobody thought of")

    def get_xsave(self):
        return bytes(4096)


class Client:
    """The other end of a connection."""

    def __init__(self, attachments: Attachments, write: bool) -> None:
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(10)
        theirs.setblocking(False)
        attachments.take(theirs.detach(), write)
        data, self.fds, _, _ = socket.recv_fds(self.socket, 1 << 16, 4)
        self.greeting = json.loads(data)
        self._file = self.socket.makefile("rb")

    def ask(self, command: object, data: bytes = b"", **asked: object):
        told = {"command": command, **asked}
        self.socket.sendall(json.dumps({**told, "bytes": len(data)} if data else told).encode())
        self.socket.sendall(b"\n" + data)
        return self.told()

    def told(self):
        answer = json.loads(self._file.readline())
        count = answer.pop("bytes", 0)
        return (answer, self._file.read(count)) if count else answer

    def close(self) -> None:
        self._file.close()
        self.socket.close()
        while self.fds:
            os.close(self.fds.pop())


@pytest.fixture
def world() -> Iterator[SimpleNamespace]:
    loop = EventLoop()
    memory = GuestMemory([(0, SIZE)], shared=True)
    machine = SimpleNamespace(
        memory=memory, vcpus=[FakeVcpu(0), FakeVcpu(1)],
        config=SimpleNamespace(kernel_path="/k", gdb=None), virtio=[],
        pio=SimpleNamespace(ranges=lambda: [(1, 2, "a")]),
        mmio=SimpleNamespace(ranges=list),
    )  # fmt: skip
    attachments = Attachments(machine, loop)
    stop: list[bool] = []
    wake = os.eventfd(0)
    loop.add(wake, lambda: stop.append(True))
    thread = threading.Thread(target=lambda: loop.run_until(lambda: bool(stop)))
    clients: list[Client] = []

    def client(write: bool = False) -> Client:
        clients.append(Client(attachments, write))
        return clients[-1]

    thread.start()
    yield SimpleNamespace(
        client=client, machine=machine, attachments=attachments, loop=loop, memory=memory
    )
    assert thread.is_alive(), "a client has ended the instance"
    os.eventfd_write(wake, 1)
    thread.join()
    attachments.close()
    for each in clients:
        each.close()
    memory.close()
    loop.close()
    os.close(wake)


def wait_until(found) -> None:
    done = threading.Event()
    for _ in range(1000):
        if found():
            return
        done.wait(0.01)
    raise AssertionError("it did not happen in time")


def test_the_greeting_brings_ram_that_only_a_writer_may_write(world):
    world.memory.write(PAGE, b"guest")
    for write, mode in ((False, os.O_RDONLY), (True, os.O_RDWR)):
        client = world.client(write)
        assert client.greeting["protocol"] == PROTOCOL
        assert client.greeting["regions"] == [[0, SIZE]]
        assert client.greeting["vcpus"] == 2
        (fd,) = client.fds
        assert os.pread(fd, 5, PAGE) == b"guest"
        assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == mode
        sealed = fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK
        assert bool(sealed) == (world.memory.backing == "memfd")
        with contextlib.suppress(OSError):
            os.pwrite(fd, b"GUEST", PAGE)
        assert (world.memory.read(PAGE, 5) == b"GUEST") == write


def test_ram_registers_and_msrs_by_requests(world):
    world.memory.write(PAGE, b"guest")
    client = world.client(write=True)
    assert client.ask("read", gpa=PAGE, length=5) == ({}, b"guest")
    assert client.ask("read", gpa=0, length=PAGE) == {"zeros": PAGE}
    assert client.ask("write", b"GUEST", gpa=PAGE) == {}
    assert world.memory.read(PAGE, 5) == b"GUEST"
    told = client.ask("registers", cpu=1)
    assert told == {"regs": {"rax": 1 << 63, "rip": 2}, "sregs": {"cr0": 1, "gdt": [3, 4]}}
    assert client.ask("msrs", cpu=0, indices=[7, 1000]) == {"values": [7]}
    assert client.ask("hold") == {}
    assert client.ask("set_registers", cpu=1, regs={"rip": 9}) == {}
    assert world.machine.vcpus[1].changed == {"rax": 1 << 63, "rip": 9}
    assert client.ask("trace_names")["ports"] == [[1, 2, "a"]]


REFUSED = [
    {"command": None}, {"command": []}, {"command": "nonsense"}, {"command": "read"},
    {"command": "read", "gpa": 0, "length": 0}, {"command": "read", "gpa": 0, "length": -1},
    {"command": "read", "gpa": 0, "length": READ_MAX + 1},
    {"command": "read", "gpa": SIZE, "length": 1}, {"command": "read", "gpa": -1, "length": 1},
    {"command": "read", "gpa": SIZE - 1, "length": 2},
    {"command": "read", "gpa": 1 << 64, "length": 1},
    {"command": "read", "gpa": True, "length": 1}, {"command": "read", "gpa": 1.5, "length": 1},
    {"command": "write", "gpa": 0}, {"command": "registers", "cpu": 2},
    {"command": "registers", "cpu": -1}, {"command": "registers", "cpu": "0"},
    {"command": "set_registers", "cpu": 0, "regs": {"rip": 1}},
    {"command": "set_msr", "cpu": 0, "index": 1, "value": 1},
    {"command": "msrs", "cpu": 0, "indices": []}, {"command": "msrs", "cpu": 0, "indices": 7},
    {"command": "msrs", "cpu": 0, "indices": [1 << 32]},
    {"command": "msrs", "cpu": 0, "indices": [0] * 65},
    {"command": "state", "cpu": 0, "what": "soul"}, {"command": "state", "cpu": 0, "what": []},
    {"command": "state", "cpu": 0, "what": "events"},
    {"command": "trace_start", "size": 0}, {"command": "trace_start", "size": 3},
    {"command": "trace_start", "size": 1 << 40}, {"command": "trace_start", "size": "8"},
    {"command": "trace_counts"}, {"command": "trace_take", "cpu": 0, "length": 64},
]  # fmt: skip


@pytest.mark.parametrize("request_", REFUSED, ids=json.dumps)
def test_what_makes_no_sense_is_an_error_and_no_more(world, request_):
    client = world.client()
    assert "error" in client.ask(**request_)
    assert client.ask("ping") == {"held": False}


@pytest.mark.parametrize(
    "sent",
    [
        b"nonsense\n", b"[]\n", b"\n", b"\xff\n", b"x" * (LINE_MAX + 1), b"[" * 4000 + b"\n",
        b'{"bytes": -1}\n', b'{"bytes": true}\n', b'{"bytes": "1"}\n',
        f'{{"bytes": {WRITE_MAX + 1}}}\n'.encode(), b'{"bytes": 1e3}\n',
    ],
)  # fmt: skip
def test_who_does_not_speak_the_language_is_told_and_dropped(world, sent):
    client = world.client()
    client.ask("hold")
    client.socket.sendall(sent)
    assert "not understood" in client.told()["over"]
    assert client.socket.recv(1) == b""
    wait_until(lambda: not world.attachments.count)
    assert not world.machine.vcpus[0].held


def test_a_reader_that_reads_nothing_holds_nobody_up(world):
    world.memory.write(0, b"x" * SIZE)
    lazy, busy = world.client(), world.client()
    asked = json.dumps({"command": "read", "gpa": 0, "length": READ_MAX}).encode() + b"\n"
    lazy.socket.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        for _ in range(100_000):
            lazy.socket.send(asked)
    for _ in range(10):
        assert busy.ask("read", gpa=0, length=READ_MAX)[1] == b"x" * READ_MAX


def test_requests_in_pieces_and_several_at_once(world):
    client = world.client(write=True)
    for byte in b'{"command": "write", "gpa": 8, "bytes": 3}\nabc':
        client.socket.sendall(bytes([byte]))
    assert client.told() == {}
    client.socket.sendall(b'{"command": "ping"}\n' * 3)
    assert [client.told() for _ in range(3)] == [{"held": False}] * 3
    assert world.memory.read(8, 3) == b"abc"


def test_a_hold_ends_with_its_connection_and_not_with_another(world):
    one, other = world.client(), world.client()
    one.ask("hold")
    one.ask("hold")
    other.ask("hold")
    assert world.attachments.status() == {"clients": 2, "holding": 2}
    one.close()
    wait_until(lambda: world.attachments.count == 1)
    assert [vcpu.held for vcpu in world.machine.vcpus] == [True, True]
    assert other.ask("let_go") == {"held": True}
    assert other.ask("let_go") == {"held": False}
    assert [vcpu.held for vcpu in world.machine.vcpus] == [False, False]


def test_when_one_vcpu_does_not_stand_still_none_does(world):
    world.machine.vcpus[1].stubborn = True
    client = world.client()
    assert "vCPU 1 does not leave the guest" in client.ask("hold")["error"]
    assert not world.machine.vcpus[0].held
    assert "does not leave" in client.ask("registers", cpu=1)["error"]
    assert client.ask("ping") == {"held": False}


def test_a_stop_lets_the_guest_go_for_good(world):
    client = world.client()
    client.ask("hold")
    world.attachments.hold_no_more("it is being stopped")
    assert not world.machine.vcpus[0].held
    assert client.ask("ping") == {"held": False}
    assert "being stopped" in client.ask("hold")["error"]
    assert client.ask("read", gpa=0, length=8) == {"zeros": 8}


def test_only_one_traces_and_gives_it_back(world):
    one, other = world.client(), world.client()
    assert one.ask("trace_start", size=8) == {}
    assert one.ask("trace_counts") == {"waiting": [0, 0], "dropped": [0, 0]}
    assert one.ask("trace_take", cpu=0, length=64) == {}
    assert "error" in one.ask("trace_take", cpu=2, length=64)
    assert "traces this guest" in other.ask("trace_start", size=8)["error"]
    one.close()
    wait_until(lambda: world.attachments.count == 1)
    assert other.ask("trace_start", size=8) == {}


def test_private_ram_comes_without_a_descriptor(world):
    world.machine.memory = GuestMemory([(0, SIZE)])
    client = world.client()
    assert client.fds == []
    assert client.greeting["shared"] is False
    assert client.ask("read", gpa=0, length=1) == {"zeros": 1}


CLOSED = SimpleNamespace(gdb=None, attach=False)


def run(**changes: object) -> SimpleNamespace:
    config = SimpleNamespace(gdb=None, attach=True)
    values = {"attached": None, "config": config, "loop": None, "machine": object(), "state": "x"}
    return SimpleNamespace(**{**values, **changes})


@pytest.mark.parametrize(
    ("changes", "request_", "told"),
    [
        ({}, {}, "protocol 1, not None"),
        ({}, {"protocol": 2}, "protocol 1, not 2"),
        ({"machine": None}, {"protocol": PROTOCOL}, "just rebooting"),
        ({"config": SimpleNamespace(gdb=1, attach=True)}, {"protocol": PROTOCOL}, "HYPERVISOR_GDB"),
        ({"config": CLOSED}, {"protocol": PROTOCOL}, "locked down"),
    ],
)
def test_who_is_not_let_in_hears_why(changes, request_, told):
    answer = attach(run(**changes), request_)
    assert isinstance(answer, dict)
    assert told in answer["error"]
    assert answer["remedy"]


def test_no_more_than_some_are_let_in(world):
    for _ in range(door.SESSIONS_MAX):
        world.client()
    answer = attach(run(attached=world.attachments), {"protocol": PROTOCOL})
    assert isinstance(answer, dict)
    assert answer["busy"] is True
    assert isinstance(attach(run(), {"protocol": PROTOCOL}), Keep)
