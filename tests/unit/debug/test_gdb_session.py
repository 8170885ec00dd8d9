"""A debugger's visit with a target that is none: what is answered, and that nothing is a crash."""

from __future__ import annotations

import socket
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmm.debug.gdb import queries
from vmm.debug.gdb.client import Client
from vmm.debug.gdb.description import target_xml
from vmm.debug.gdb.memory import NoMemory
from vmm.debug.gdb.packets import PACKET_MAX, Packet, encode
from vmm.debug.gdb.registers import ALL_BYTES, REGISTERS, number_of
from vmm.debug.gdb.session import DETACHED, ENDED, KILLED, VANISHED, Session
from vmm.debug.stop import Stop
from vmm.errors import HostError

MEMORY = 0x10000


class FakeFile:
    def __init__(self) -> None:
        self.values = [bytes(register.bytes) for register in REGISTERS]

    def read(self, number: int) -> bytes:
        return self.values[number]

    def read_all(self) -> bytes:
        return b"".join(self.values)

    def write(self, number: int, data: bytes) -> None:
        if len(data) != len(self.values[number]):
            raise ValueError("size")
        self.values[number] = data

    def write_all(self, data: bytes) -> None:
        if len(data) != ALL_BYTES:
            raise ValueError("size")


class FakeControl:
    outcome = None


class FakeTarget:
    """Two threads and 64 KiB."""

    def __init__(self) -> None:
        self.threads = 2
        self.physical = False
        self.memory = bytearray(MEMORY)
        self.file = FakeFile()
        self.control = FakeControl()
        self.set: set[tuple[int, int, int]] = set()
        self.ran: list[dict] = []

    def cpu(self, thread: int) -> None:
        if not 1 <= thread <= self.threads:
            raise ValueError("thread")

    def describe(self, thread: int) -> str:
        self.cpu(thread)
        return f"CPU {thread - 1}"

    def registers(self, thread: int) -> FakeFile:
        self.cpu(thread)
        return self.file

    def read_memory(self, thread: int, address: int, length: int) -> bytes:
        if address >= MEMORY:
            raise NoMemory("none")
        return bytes(self.memory[address : address + length])

    def write_memory(self, thread: int, address: int, data: bytes) -> None:
        if address + len(data) > MEMORY:
            raise NoMemory("none")
        self.memory[address : address + len(data)] = data

    def insert(self, kind: int, address: int, size: int) -> bool:
        if address == 0xBAD:
            raise HostError("all are in use", "remove one")
        if kind <= 1:
            self.set.add((kind, address, size))
        return kind <= 1

    def remove(self, kind: int, address: int, size: int) -> bool:
        self.set.discard((kind, address, size))
        return kind <= 1

    def remove_all(self) -> None:
        self.set.clear()

    def run(self, orders: dict, until: object) -> Stop:
        self.ran.append(orders)
        return Stop("step", 1)


class Visit:
    """A session over a socket pair; ask() sends a request and returns its reply."""

    def __init__(self) -> None:
        self.gdb, own = socket.socketpair()
        self.client = Client(own, lambda: None)
        self.target = FakeTarget()
        self.session = Session(self.client, self.target)  # type: ignore[arg-type]

    def ask(self, data: bytes) -> bytes | None:
        return self.session._received(Packet(data, True))

    def close(self) -> None:
        self.client.close()
        self.gdb.close()


@pytest.fixture
def visit():
    made = Visit()
    made.ask(b"QStartNoAckMode")
    yield made
    made.close()


def test_registers(visit):
    assert len(visit.ask(b"g")) == 2 * ALL_BYTES
    cr3 = b"%x" % number_of("cr3")
    assert visit.ask(b"P" + cr3 + b"=" + (0x1234000).to_bytes(8, "little").hex().encode()) == b"OK"
    assert visit.ask(b"p" + cr3) == (0x1234000).to_bytes(8, "little").hex().encode()
    for bad in (b"p", b"pffff", b"P1=00", b"P1", b"Pzz=00", b"G00", b"Gxx"):
        assert visit.ask(bad).startswith(b"E"), bad


def test_memory(visit):
    assert visit.ask(b"M100,4:deadbeef") == b"OK"
    assert visit.ask(b"X104,3:ab}") == b"OK"
    assert visit.ask(b"m100,7") == b"deadbeef" + b"ab}".hex().encode()
    assert visit.ask(b"X0,0:") == b"OK"
    assert visit.ask(b"m20000,4") == b"E0e"
    assert len(visit.ask(b"m0,ffffffffffffffff")) <= PACKET_MAX
    for bad in (b"m", b"m0", b"m0,", b"M0,4:00", b"M0,1:0", b"M0,1:zz", b"X0,5:abc", b"Mfffe,4:00"):
        assert visit.ask(bad).startswith(b"E"), bad


def test_breakpoints(visit):
    assert visit.ask(b"Z0,1000,1") == b"OK"
    assert visit.ask(b"Z0,1000,1") == b"OK"
    assert visit.target.set == {(0, 0x1000, 1)}
    assert visit.ask(b"z0,1000,1") == b"OK"
    assert visit.ask(b"Z3,1000,4") == b""
    assert visit.ask(b"Z1,bad,1").startswith(b"E.all are in use")
    assert visit.ask(b"Z0,zz,1").startswith(b"E")


def test_threads(visit):
    assert visit.ask(b"qfThreadInfo") == b"m1,2"
    assert visit.ask(b"qsThreadInfo") == b"l"
    assert visit.ask(b"Hg2") == b"OK"
    assert visit.ask(b"qC") == b"QC2"
    assert visit.ask(b"Hg3") == b"E01"
    assert visit.ask(b"Hc-1") == b"OK"
    assert visit.ask(b"T2") == b"OK"
    assert visit.ask(b"T9") == b"E01"
    assert bytes.fromhex(visit.ask(b"qThreadExtraInfo,2").decode()) == b"CPU 1"


def test_running(visit):
    visit.ask(b"qSupported:swbreak+;hwbreak+;multiprocess+")
    assert visit.ask(b"vCont;s:2;c") == b"T05thread:02;"
    assert visit.target.ran[-1][2].step
    assert set(visit.target.ran[-1]) == {1, 2}
    assert visit.ask(b"s") == b"T05thread:02;"
    assert list(visit.target.ran[-1]) == [2]
    assert visit.ask(b"c10") == b"T05thread:02;"
    assert visit.target.file.read(number_of("rip")) == (16).to_bytes(8, "little")
    assert visit.ask(b"C05;20") == b"T05thread:02;"
    for bad in (b"vCont;", b"vCont;q", b"vCont;c:77", b"cxyz"):
        assert visit.ask(bad).startswith(b"E"), bad


def test_what_an_action_raises_is_told_and_kept(visit):
    def fails(orders, until):
        raise ZeroDivisionError("of the script")

    visit.target.run = fails
    assert visit.ask(b"c") == b"T05thread:01;"
    assert b"of the script".hex().encode() in visit.gdb.recv(4096)
    assert isinstance(visit.session.failure, ZeroDivisionError)


def test_a_mistake_of_ours_is_an_error_reply(visit):
    def broken(thread):
        raise TypeError("a mistake")

    visit.target.registers = broken
    assert visit.ask(b"g") == b"E01"
    assert visit.ask(b"qC") == b"QC1"


def test_the_description_comes_in_parts(visit):
    whole, at = b"", 0
    while True:
        part = visit.ask(b"qXfer:features:read:target.xml:%x,200" % at)
        whole, at = whole + part[1:], at + len(part) - 1
        if part[:1] == b"l":
            break
    assert whole == target_xml()
    assert visit.ask(b"qXfer:features:read:other.xml:0,200") == b""


def test_physical_addresses_as_qemu_has_them(visit):
    assert visit.ask(b"qqemu.PhyMemMode") == b"0"
    assert visit.ask(b"Qqemu.PhyMemMode:1") == b"OK"
    assert visit.target.physical
    assert visit.ask(b"qqemu.PhyMemMode") == b"1"


def test_what_is_not_known_is_an_empty_packet(visit):
    for request in (b"vMustReplyEmpty", b"!", b"R00", b"qXfer:auxv:read::0,10", b"Qnothing", b"",
                    b"vFile:open:2f,0,0", b"vRun;", b"\xff\xfe"):  # fmt: skip
        assert visit.ask(request) == b"", request


REQUESTS = st.one_of(
    st.binary(max_size=40),
    st.builds(
        lambda head, rest: head + rest,
        st.sampled_from([b"m", b"M", b"X", b"p", b"P", b"G", b"H", b"T", b"Z0", b"z1", b"vCont;",
                         b"qRcmd,", b"qXfer:features:read:target.xml:", b"qThreadExtraInfo,", b"c",
                         b"C", b"QqemuPhyMemMode:", b"qsThreadInfo", b"vKill", b"qSupported:"]),
        st.text("0123456789abcdef,;:=-#", max_size=30).map(str.encode),
    ),
)  # fmt: skip


@settings(max_examples=300)
@given(st.lists(REQUESTS, max_size=8))
def test_any_requests_are_answered(requests):
    visit = Visit()
    visit.gdb.settimeout(5)
    try:
        for request in requests:
            reply = visit.ask(request)
            assert reply is None or len(reply) <= PACKET_MAX, request
    finally:
        visit.close()


@pytest.mark.parametrize(
    ("last", "end"), [(b"D", DETACHED), (b"k", KILLED), (b"vKill;1", KILLED), (None, VANISHED)]
)
def test_how_it_ends(last, end):
    visit = Visit()
    visit.target.insert(0, 1, 1)
    if last is None:
        visit.gdb.close()
    else:
        visit.gdb.sendall(encode(last))
    visit.client.receive()
    thread = threading.Thread(target=visit.session.serve)
    thread.start()
    thread.join(10)
    assert visit.session.end == end
    assert not visit.target.set
    visit.close()


def test_a_guest_that_has_ended_says_so(visit):
    class Outcome:
        kind = "shutdown"
        reason = "the guest powered itself off"

    visit.target.run = lambda orders, until: Stop("ended", outcome=Outcome())
    assert visit.ask(b"vCont;c") == b"W00"
    assert visit.session.end == ENDED


def test_features_name_the_size_of_packets():
    assert b"PacketSize=4000" in queries.FEATURES
