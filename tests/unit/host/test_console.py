"""The host's end of a console."""

from __future__ import annotations

import os
import pty
import time
from types import SimpleNamespace

import pytest

from vmm._native.console.byteport import BytePort
from vmm.host.console import HostConsole, overwritten
from vmm.host.terminal import serial_has_input
from vmm.log.hub import hub
from vmm.log.stream import open_anew
from vmm.settings.parse import Endpoint

LIMIT = 64 << 10


def test_flush_waits_for_the_guest_s_words(tmp_path):
    path = tmp_path / "console"
    console = HostConsole("file", str(path))
    console.start("console")
    console.port.guest_write(b"words\n" * 1000)
    console.flush(5)
    assert path.read_bytes() == b"words\n" * 1000
    assert console.port.waiting == 0
    console.close()


def test_flush_does_not_wait_for_a_reader_that_sleeps(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    console = HostConsole("file", str(pipe))
    console.start("console")
    console.port.guest_write(b"x" * (128 << 10))
    started = time.monotonic()
    console.flush(0.05)
    assert 0.04 < time.monotonic() - started < 2
    assert console.port.waiting > 0
    os.close(reader)
    console.close()


def test_what_nobody_took_is_told(tmp_path, monkeypatch):
    told = []
    sink = SimpleNamespace(write=lambda level, name, message, fields: told.append(message))
    monkeypatch.setattr(hub, "sinks", [sink])
    os.mkfifo(tmp_path / "pipe")
    console = HostConsole("file", str(tmp_path / "pipe"))
    console.start("console")
    for _ in range(4):
        console.port.guest_write(b"x" * (128 << 10))
    console.close()
    console.close()
    assert told == [
        f"{console.port.dropped} bytes of the guest's output to {tmp_path}/pipe were lost: "
        "nobody took them in time"
    ]


@pytest.mark.parametrize("keep", [0, 2])
def test_a_full_file_is_kept_aside(tmp_path, keep):
    path = tmp_path / "console"
    path.write_bytes(b"old\n")
    console = HostConsole("file", str(path), end=Endpoint("file", str(path), LIMIT, keep))
    console.start("console")
    lines = [b"%05d\n" % n for n in range(5 * LIMIT // 6)]
    for start in range(0, len(lines), 1000):
        console.port.guest_write(b"".join(lines[start : start + 1000]))
        console.flush(5)
    # Reopening by SIGHUP goes on with the file of this name.
    console.reopen()
    console.port.guest_write(b"end\n")
    console.close()
    names = [path, *[tmp_path / f"console.{n + 1}" for n in range(keep)]]
    assert sorted(os.listdir(tmp_path)) == sorted(name.name for name in names)
    assert all(0 < name.stat().st_size <= LIMIT for name in names)
    text = b"".join([name.read_bytes() for name in reversed(names)])
    assert (b"".join(lines) + b"end\n").endswith(text)
    assert console.port.dropped == 0


def test_a_full_file_starts_anew_where_none_can_be_made(tmp_path):
    path = tmp_path / "console"
    (tmp_path / "console.new").mkdir()
    console = HostConsole("file", str(path), end=Endpoint("file", str(path), LIMIT, 1))
    console.start("console")
    for _ in range(20):
        console.port.guest_write(b"0123456\n" * 1024)
        console.flush(5)
    console.close()
    assert sorted(os.listdir(tmp_path)) == ["console", "console.new"]
    assert 0 < path.stat().st_size <= LIMIT


def test_no_file_of_the_vm_is_replaced_by_a_full_one():
    end = Endpoint("file", "/srv/vm/disk", LIMIT, 2)
    assert overwritten(end, ["/boot/vmlinuz", "/srv/vm/disk.2"]) == "/srv/vm/disk.2"
    assert not overwritten(end, ["/srv/vm/disk.3"])
    assert not overwritten(end.replace(max_bytes=0), ["/srv/vm/disk.2"])


class Typed:
    """Two ports on one terminal, which is a pipe here."""

    def __init__(self, first_is_other: bool = False) -> None:
        self.reader, self.writer = os.pipe()
        self.shown, shows = os.pipe()
        self.escape = os.eventfd(0, os.EFD_NONBLOCK)
        self.port = BytePort(self.reader, shows)
        self.other = BytePort(-1, shows)
        self._shows = shows
        self.port.set_keys(self.escape, b"help\n")
        self.port.share_input(self.other, first_is_other, b"here\n", b"there\n")
        self.port.start("console")

    def type(self, text: bytes) -> tuple[bytes, bytes]:
        """What the two guests' consoles receive."""
        os.write(self.writer, text)
        got = [b"", b""]
        deadline = time.monotonic() + 1
        while time.monotonic() < deadline and not any(got):
            time.sleep(0.02)
            got = [port.guest_read(100) for port in (self.port, self.other)]
        return got[0], got[1]

    def close(self) -> None:
        self.other.close()
        self.port.close()
        for fd in (self.reader, self.writer, self.shown, self._shows, self.escape):
            os.close(fd)


@pytest.fixture
def typed():
    made = Typed()
    yield made
    made.close()


def test_keys(typed):
    assert typed.type(b"ab\x01\x01c") == (b"ab\x01c", b"")
    assert typed.type(b"\x01z") == (b"\x01z", b"")
    assert typed.type(b"\x01") == (b"", b"")
    assert typed.type(b"hq") == (b"q", b"")
    assert os.read(typed.shown, 100) == b"help\n"
    typed.type(b"\x01x\x01xy")
    assert os.eventfd_read(typed.escape) == 2


def test_two_consoles_on_a_terminal_have_its_input_in_turns(typed):
    assert typed.type(b"one") == (b"one", b"")
    assert typed.type(b"\x01ctwo") == (b"", b"two")
    assert os.read(typed.shown, 100) == b"there\n"
    assert typed.type(b"more\x01c") == (b"", b"more")
    assert typed.type(b"back") == (b"back", b"")
    # Much of it waits for the one that is to have it.
    typed.type(b"\x01c")
    os.write(typed.writer, bytes(10_000))
    taken = 0
    deadline = time.monotonic() + 5
    while taken < 10_000 and time.monotonic() < deadline:
        taken += len(typed.other.guest_read(1000))
    assert taken == 10_000


@pytest.mark.parametrize(
    ("cmdline", "serial"),
    [
        ("", True),
        ("console=ttyS0,115200", True),
        ("console=ttyS0 console=hvc0", False),
        ("console=hvc0 root=/dev/vda console=tty0", False),
    ],
)
def test_who_has_the_input_at_first(cmdline, serial):
    assert serial_has_input(cmdline) == serial


@pytest.mark.parametrize("start", [0, 1])
def test_a_terminal_that_nobody_reads_holds_up_nothing(start):
    """Not even in blocking mode, as another user's terminal is."""
    master, slave = pty.openpty()
    port = BytePort(-1, slave)
    port.start("console")
    port.guest_write(b"x" * start + b"\n" * 200_000)
    time.sleep(0.2)
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.3
    started = time.monotonic()
    port.close()
    assert time.monotonic() - started < 5
    os.close(master)
    os.close(slave)


@pytest.mark.parametrize("start", [0, 1])
def test_a_terminal_with_room_for_one_byte_costs_nothing(start):
    master, slave = pty.openpty()
    own = open_anew(slave)
    port = BytePort(-1, own)
    port.start("console")
    port.guest_write(b"x" * start + b"\n" * 200_000)
    time.sleep(0.2)
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.3
    port.close()
    for fd in (master, slave, own):
        os.close(fd)
