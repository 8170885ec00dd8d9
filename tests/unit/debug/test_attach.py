"""Whoever answers when a script attaches may be anybody: it ends in an error, never in harm."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace

import pytest

from vmm.debug.attach import link, opening
from vmm.debug.attach.attached import Attached
from vmm.debug.attach.link import Link
from vmm.debug.attach.memory import Ahead, AskedMemory, FileMemory
from vmm.debug.attach.opening import Facts, attach_to, memory_of, same_user
from vmm.debug.attach.trace import RemoteMachine, RemoteRing
from vmm.debug.attach.vcpu import RemoteVcpuFd
from vmm.debug.registers import GENERAL
from vmm.errors import BusyError, HostError, NotRunningError
from vmm.run.attach.wire import PROTOCOL, READ_MAX

GREETING = {
    "protocol": PROTOCOL, "version": "1", "regions": [[0, 1 << 20]], "shared": False, "vcpus": 1,
    "kernel": "/k",
}  # fmt: skip


def line(told: object, data: bytes = b"") -> bytes:
    return json.dumps(told).encode() + b"\n" + data


class Liar:
    """Listens as an instance does; each request gets the next of its answers."""

    def __init__(self, folder, *answers: bytes | None, fds: tuple[int, ...] = ()) -> None:
        self.folder = SimpleNamespace(name="vm", fd=os.open(folder, os.O_RDONLY), uid=os.geteuid())
        self.asked: list[object] = []
        self._answers, self._fds = answers, fds
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(folder / "control"))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        # A client that has heard enough closes with bytes unread: that resets the connection.
        with connection, connection.makefile("rb") as asked, suppress(ConnectionError):
            for number, answer in enumerate(self._answers):
                self.asked.append(asked.readline())
                if answer is None:
                    break
                socket.send_fds(connection, [answer], [] if number else self._fds)
            else:
                asked.read()

    def close(self) -> None:
        self._thread.join()
        self._listener.close()
        os.close(self.folder.fd)


@pytest.fixture
def liar(tmp_path, monkeypatch):
    monkeypatch.setattr(link, "ANSWER_SECONDS", 0.5)
    made: list[Liar] = []
    links: list[Link] = []

    def connect(*answers: bytes | None, fds: tuple[int, ...] = ()) -> Link:
        made.append(Liar(tmp_path, *answers, fds=fds))
        links.append(Link(made[-1].folder, "control"))
        return links[-1]

    yield connect
    for each in links:
        each.close()
    for one in made:
        one.close()


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (None, "closed the connection"),
        (b"", "does not answer within"),
        (b"half", "does not answer within"),
        (b"nonsense\n", "(?i)expecting value"),
        (b"[]\n", "in place of an object"),
        (b"[" * 5000 + b"\n", "nested too deep"),
        (line({"protocol": 9}), "speaks protocol 9"),
        (line({}), "speaks protocol None"),
        (line({"over": "\x1b[2Jgone"}), r"\\x1b\[2Jgone"),
        (line({"error": "unknown command 'attach'; known: stop"}), "cannot be attached to"),
        (line({"error": "\x07no", "remedy": "\x07do"}), r"\\x07no.*\\x07do"),
        (line({"error": ["x"]}), "x"),
        (line({"bytes": -1}), "bytes=-1"),
        (line({"bytes": 1 << 40}), "bytes=1099511627776"),
        (line({"bytes": 4}, b"ab"), "does not answer within"),
    ],
)
def test_a_greeting_that_is_none_is_an_error(liar, answer, told):
    with pytest.raises(HostError, match=told):
        liar(answer)


def test_one_that_is_busy_says_so(liar):
    with pytest.raises(BusyError, match="4 are attached already"):
        liar(line({"error": "4 are attached already", "busy": True}))


def test_an_answer_without_end_is_cut_off(liar, monkeypatch):
    monkeypatch.setattr(link, "REPLY_MAX", 1000)
    monkeypatch.setattr(link, "RECEIVE_BYTES", 100)
    with pytest.raises(HostError, match="too long"):
        liar(b"x" * 2000)


@pytest.mark.parametrize(
    "changes",
    [
        {"regions": None}, {"regions": []}, {"regions": [[0]]}, {"regions": [[0, True]]},
        {"regions": [[0, 0]]}, {"regions": [[0, -4096]]}, {"regions": [[0, 100]]},
        {"regions": [[1, 4096]]}, {"regions": [[0, 1 << 53]]}, {"regions": [[0, 4096]] * 9},
        {"regions": [[0, 8192], [4096, 8192]]}, {"regions": [["0", 4096]]},
        {"regions": [[0, 1 << 45]]}, {"vcpus": 0}, {"vcpus": True}, {"vcpus": 1 << 40},
        {"vcpus": None},
    ],
)  # fmt: skip
def test_a_guest_that_cannot_be_is_refused(liar, changes):
    connected = liar(line({**GREETING, **changes}))
    with pytest.raises(HostError, match="not understood"):
        Attached(connected)
    assert connected.closed


def memfd(size: int, sealed: bool) -> int:
    import fcntl

    fd = os.memfd_create("x", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    if sealed:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    return fd


def pipe_end() -> int:
    reading, writing = os.pipe()
    os.close(writing)
    return reading


@pytest.mark.parametrize(
    "make",
    [
        None,
        lambda: os.open("/dev/null", os.O_RDWR),
        pipe_end,
        lambda: os.open(__file__, os.O_RDONLY),
        lambda: memfd(4096, sealed=True),
    ],
    ids=["none", "device", "pipe", "file", "short"],
)
def test_a_descriptor_that_could_end_who_maps_it_is_not_used(liar, make: Callable[[], int] | None):
    fds = () if make is None else (make(),)
    try:
        connected = liar(line({**GREETING, "shared": True}), fds=fds)
        with pytest.raises(HostError, match="descriptor"):
            memory_of(connected, Facts(connected))
        assert connected.ram_fd == -1
    finally:
        for fd in fds:
            os.close(fd)


@pytest.mark.parametrize("own", [True, False])
def test_memory_without_seals_is_mapped_when_it_is_our_own_users(liar, monkeypatch, own):
    fd = memfd(1 << 20, sealed=False)
    try:
        connected = liar(line({**GREETING, "shared": True}), fds=(fd,))
        if not own:
            monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        found = memory_of(connected, Facts(connected))
        assert isinstance(found, FileMemory if own else AskedMemory)
    finally:
        os.close(fd)


def test_of_many_descriptors_none_stays(liar):
    fd = memfd(1 << 20, sealed=True)
    before = len(os.listdir("/proc/self/fd"))
    try:
        connected = liar(line(GREETING), fds=(fd,) * 50)
        connected.close()
        # The liar's own: its folder, its listener, and the connection, as long as it lives.
        assert len(os.listdir("/proc/self/fd")) <= before + 3
    finally:
        os.close(fd)


def test_good_memory_is_read_by_its_descriptor(liar):
    fd = memfd(1 << 20, sealed=True)
    os.pwrite(fd, b"guest", 4096)
    try:
        connected = liar(line({**GREETING, "shared": True}), fds=(fd,))
        memory = memory_of(connected, Facts(connected))
        assert memory.read(4096, 5) == b"guest"
        assert memory.read(0, 1 << 20)[4096:4101] == b"guest"
        assert memory.read(1 << 19, 1 << 19) == bytes(1 << 19)
        with pytest.raises(ValueError, match="is not inside guest RAM"):
            memory.read(1 << 20, 1)
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    "answer", [line({}), line({"zeros": 9}), line({"bytes": 3}, b"abc"), line({"zeros": True})]
)
def test_ram_of_another_length_is_refused(liar, answer):
    connected = liar(line(GREETING), answer)
    with pytest.raises(HostError, match="bytes of RAM in place of 8"):
        memory_of(connected, Facts(connected)).read(0, 8)
    with pytest.raises(HostError, match="attach again"):
        connected.ask("ping")


def test_private_ram_is_asked_for_in_pieces_that_are_sent_together(liar):
    pieces = [line({"bytes": READ_MAX}, bytes([n]) * READ_MAX) for n in range(8)]
    # One write for all requests: the liar answers the first line with all of it.
    connected = liar(line({**GREETING, "regions": [[0, 16 << 20]]}), b"".join(pieces))
    ahead = Ahead(memory_of(connected, Facts(connected)))
    assert ahead.read(0, 1) == b"\0"
    assert ahead.read(READ_MAX - 1, 2) == b"\0\1"
    assert ahead.read(8 * READ_MAX - 2, 1) == b"\7"
    with pytest.raises(ValueError, match="is not inside guest RAM"):
        ahead.read(16 << 20, 1)


def test_one_refusal_among_several_leaves_the_others_in_step(liar):
    answers = line({"error": "no"}) + line({"n": 2})
    connected = liar(line(GREETING), answers, b"", line({"n": 3}))
    with pytest.raises(HostError, match="no"):
        connected.ask_all([{"command": "a"}, {"command": "b"}])
    assert connected.ask("c") == ({"n": 3}, b"")


REGS = dict.fromkeys(GENERAL, 1)


@pytest.mark.parametrize(
    "told",
    [
        {}, {"regs": [], "sregs": {}}, {"regs": REGS, "sregs": {}},
        {"regs": {**REGS, "rip": -1}, "sregs": {}}, {"regs": {**REGS, "rip": 1 << 64}, "sregs": {}},
        {"regs": {**REGS, "rip": "1"}, "sregs": {}}, {"regs": REGS, "sregs": {"cs": 1}},
    ],
)  # fmt: skip
def test_registers_that_cannot_be_are_refused(liar, told):
    connected = liar(line(GREETING), line(told))
    with pytest.raises(HostError, match="not understood"):
        RemoteVcpuFd(connected, 0).both()


def test_other_state_that_cannot_be_is_refused(liar):
    connected = liar(line(GREETING), line({"values": [1, 2]}))
    with pytest.raises(HostError, match="no MSRs"):
        RemoteVcpuFd(connected, 0).get_msrs([1])


@pytest.mark.parametrize(
    "told", [{}, {"waiting": [1]}, {"waiting": [-1], "dropped": [0]}, {"waiting": 5, "dropped": 5}]
)
def test_counts_of_a_trace_that_cannot_be_are_refused(liar, told):
    connected = liar(line(GREETING), line(told))
    with pytest.raises(HostError, match="not understood"):
        assert RemoteRing(connected, 0).waiting


@pytest.mark.parametrize("size", [0, 10, 128])
def test_records_of_a_trace_that_do_not_fit_are_refused(liar, size):
    connected = liar(line(GREETING), line({"bytes": size} if size else {}, b"x" * size))
    with pytest.raises(HostError, match="of a trace in place of 64"):
        RemoteRing(connected, 0).read_into(bytearray(64))


def test_names_of_devices_that_cannot_be_are_refused(liar):
    connected = liar(line(GREETING), line({"ports": [[1, 2]], "memory": [], "virtio": []}))
    with pytest.raises(HostError, match="not understood"):
        RemoteMachine(connected, 1).pio.ranges()


def test_a_word_that_nobody_asked_for_ends_it(liar):
    connected = liar(line(GREETING) + line({"over": "the guest has rebooted or ended"}))
    with pytest.raises(HostError, match="rebooted or ended"):
        connected.check()
    with pytest.raises(HostError, match="rebooted or ended"):
        connected.ask("ping")


def test_another_users_instance_is_refused():
    with pytest.raises(HostError, match=r"is run by user 12345, not by .*sudo -u '#12345'"):
        same_user(SimpleNamespace(name="vm", uid=12345))


def test_a_process_of_another_user_is_not_spoken_to(tmp_path, monkeypatch):
    liar = Liar(tmp_path, None)
    liar.folder.uid += 1
    with pytest.raises(HostError, match="a process of user"):
        Link(liar.folder, "control")
    liar.close()
    assert liar.asked == [b""]


class Folder:
    """An instance's folder, as far as it is looked at."""

    name, uid, unseen = "vm", 0, ""
    running = True

    def __init__(self, path) -> None:
        self.fd = os.open(path, os.O_RDONLY)

    def process(self) -> None:
        return None

    def state(self) -> dict[str, object]:
        return {}


def test_one_that_does_not_run_or_just_starts(tmp_path):
    folder = Folder(tmp_path)
    try:
        with pytest.raises(HostError, match="is just starting"):
            attach_to(folder)
        folder.running = False
        with pytest.raises(NotRunningError, match="does not run"):
            attach_to(folder)
    finally:
        os.close(folder.fd)
    assert opening.REGIONS_MAX == 8
