"""What systemd is told, by a notification socket of our own; and what journald gets."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from devices.vfio.dma import CHUNK_BYTES, DmaDomain
from vmm.errors import setting_of
from vmm.host.console import JOURNAL_HEADER, HostConsole
from vmm.log.sinks import FdSink, JournalSink, open_sink
from vmm.memory import allocate
from vmm.run.notify import STATUS_MAX, Notifier
from vmm.settings.memory import parse_memory

GIB = 1 << 30


class Manager:
    """The other end: datagrams as lists of lines."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address.replace("@", "\0", 1))
        self.socket.settimeout(5)

    def receive(self) -> list[str]:
        return self.socket.recv(1 << 16).decode().split("\n")

    def silent(self) -> bool:
        self.socket.setblocking(False)
        try:
            self.socket.recv(1)
        except BlockingIOError:
            return True
        return False


@pytest.fixture(params=["path", "abstract"])
def address(request, tmp_path) -> str:
    if request.param == "path":
        return str(tmp_path / "notify")
    return f"@vllmd-test-{os.getpid()}-{time.monotonic_ns()}"


@pytest.fixture
def manager(address) -> Iterator[Manager]:
    listening = Manager(address)
    yield listening
    listening.socket.close()


def test_states(manager, address):
    notifier = Notifier.from_env({"NOTIFY_SOCKET": address})
    notifier.ready("running: 4 vCPUs")
    assert manager.receive() == ["READY=1", "STATUS=running: 4 vCPUs"]
    notifier.status("booting")
    assert manager.receive() == ["STATUS=booting"]
    notifier.stopping("stopping", 25)
    assert manager.receive() == ["STOPPING=1", "STATUS=stopping", "EXTEND_TIMEOUT_USEC=35000000"]
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notifier.reloading()
    reloading, stamp = manager.receive()
    assert reloading == "RELOADING=1"
    after = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    assert before <= int(stamp.removeprefix("MONOTONIC_USEC=")) <= after


def test_a_status_is_one_short_line(manager, address):
    Notifier(address).status("a\nREADY=1\x1b[31m" + "x" * 5000)
    (line,) = manager.receive()
    assert line.startswith("STATUS=a; READY=1?[31mxxx")
    assert len(line) == len("STATUS=") + STATUS_MAX


def test_nobody_listens_or_asks(tmp_path):
    Notifier(str(tmp_path / "none")).ready("x")
    silent = Notifier.from_env({"WATCHDOG_USEC": "1000000"})
    silent.ready("x")
    assert silent.watchdog_seconds == 0


def test_the_watchdog_is_fed_only_when_asked(manager, address):
    asked = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "3000000"}
    notifier = Notifier.from_env(asked)
    assert notifier.watchdog_seconds == 1.5
    notifier.feed()
    assert manager.receive() == ["WATCHDOG=1"]
    assert Notifier.from_env({**asked, "WATCHDOG_PID": str(os.getpid())}).watchdog_seconds == 1.5
    for odd in ({"WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "soon"}, {"WATCHDOG_USEC": ""}):
        other = Notifier.from_env({**asked, **odd})
        assert other.watchdog_seconds == 0
        other.feed()
    assert manager.silent()


def test_long_steps_ask_for_patience(manager, address):
    notifier = Notifier(address, watchdog_usec=2_000_000)
    notifier.progress("pinning", 40 * GIB, 64 * GIB)
    assert manager.receive() == ["STATUS=pinning 40 of 64 GiB", "EXTEND_TIMEOUT_USEC=60000000"]
    assert manager.receive() == ["WATCHDOG=1"]
    notifier.progress("prefaulting", 0, 512 << 20)
    assert manager.receive()[0] == "STATUS=prefaulting 0 of 512 MiB"


class FakeDomain(DmaDomain):
    """A domain that takes every mapping."""

    def __init__(self, progress: object) -> None:
        super().__init__(None, None, progress)
        self.mapped: list[tuple[int, int, int]] = []

    def _iova_ranges(self) -> list[tuple[int, int]]:
        return []

    def _map_dma(self, hva: int, iova: int, size: int) -> None:
        self.mapped.append((hva, iova, size))


class FakeMemory:
    """RAM below and above the 32-bit hole, with no memory behind it."""

    regions = ((0, 3 * GIB), (4 * GIB, 13 * GIB))
    slots = ((0, 3 * GIB, 1 << 40), (4 * GIB, 13 * GIB, 2 << 40))
    size = 16 * GIB


def test_pinning_is_told_piece_by_piece():
    told: list[tuple[str, int, int]] = []
    domain = FakeDomain(lambda *step: told.append(step))
    domain._map_ram(FakeMemory())
    assert sum([size for _, _, size in domain.mapped]) == 16 * GIB
    assert max([size for _, _, size in domain.mapped]) == CHUNK_BYTES
    assert told == [("pinning", n * GIB, 16 * GIB) for n in (0, 3, 7, 11, 15)]


def test_prefaulting_is_told():
    told: list[tuple[str, int, int]] = []
    memory = allocate(parse_memory("size=4M,prefault=on"), lambda *step: told.append(step))
    memory.close()
    assert told == [("prefaulting", 0, 4 << 20)]


@pytest.mark.parametrize(
    ("problem", "variable"),
    [
        ("VLLMD_HYPERVISOR_CPU_COUNT=x: not a number", "VLLMD_HYPERVISOR_CPU_COUNT"),
        ("VLLMD_HYPERVISOR_CPUS is not a known setting", "VLLMD_HYPERVISOR_CPUS"),
        ("VLLMD_HYPERVISOR_LOG_FILEPATH: cannot log to /x", "VLLMD_HYPERVISOR_LOG_FILEPATH"),
        ("/dev/kvm is missing", None),
    ],
)
def test_the_variable_of_a_problem(problem, variable):
    assert setting_of(problem) == variable


def test_a_journal_that_is_slow_is_waited_for(tmp_path):
    """close() returns when all was read, the empty record behind the message included."""
    read: list[bytes] = []
    path = str(tmp_path / "journal")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(path)
        sink = JournalSink(path)
        sink.write(3, "vmm.command.cli", "the last words")

        def slow() -> None:
            time.sleep(0.05)
            read.append(journal.recv(4096))
            time.sleep(0.05)
            read.append(journal.recv(4096))

        reader = threading.Thread(target=slow)
        reader.start()
        started = time.monotonic()
        sink.close()
        waited = time.monotonic() - started
        reader.join()
    assert waited > 0.09
    assert b"the last words" in read[0]
    assert read[1] == b"\n"


def test_a_journal_that_hangs_is_not_waited_for_long(tmp_path):
    path = str(tmp_path / "journal")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(path)
        sink = JournalSink(path)
        sink.write(3, "vmm.command.cli", "the last words")
        started = time.monotonic()
        sink.close()
        assert time.monotonic() - started < 2


def test_a_stream_that_is_the_journal_gets_whole_messages(tmp_path, monkeypatch):
    stat = os.fstat(1)
    stream = f"{stat.st_dev}:{stat.st_ino}"
    path = str(tmp_path / "journal")
    monkeypatch.setattr("vmm.log.sinks.JOURNAL_SOCKET", path)
    assert type(open_sink("/dev/stdout", stream)) is FdSink  # journald is not there
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(path)
        sink = open_sink("/dev/stdout", stream)
        assert type(sink) is JournalSink
        sink.close()
        assert type(open_sink("/dev/stdout", "1:2")) is FdSink


def test_a_guest_has_a_stream_of_its_own_in_the_journal(tmp_path, monkeypatch):
    """Where stdout is the journal: no priorities by what the guest writes, another identifier."""
    path = str(tmp_path / "stdout")
    monkeypatch.setattr("vmm.host.console.JOURNAL_PREFIX", str(tmp_path))
    with socket.socket(socket.AF_UNIX) as journald, socket.socket(socket.AF_UNIX) as service:
        journald.bind(path)
        journald.listen(2)
        service.connect(path)
        stdout = os.dup(1)
        os.dup2(service.fileno(), 1)
        try:
            console = HostConsole("tty")
            console.start("console")
        finally:
            os.dup2(stdout, 1)
            os.close(stdout)
        given, own = journald.accept()[0], journald.accept()[0]
        console.port.guest_write(b"<0>boo\n")
        console.close()
        text = b""
        while data := own.recv(4096):
            text += data
        assert text == JOURNAL_HEADER + b"<0>boo\n"
        given.setblocking(False)
        with pytest.raises(BlockingIOError):
            given.recv(1)
        given.close()
        own.close()


@pytest.mark.parametrize("usec", ["9" * 5000, "9" * 20, "²", "٣", "-1", "1e6", " "])
def test_a_watchdog_that_is_none(usec):
    found = Notifier.from_env({"NOTIFY_SOCKET": "/none", "WATCHDOG_USEC": usec})
    assert found.watchdog_seconds == 0
