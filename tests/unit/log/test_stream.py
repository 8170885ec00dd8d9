"""Output that waits for nobody."""

from __future__ import annotations

import errno
import os
import pty
import socket
import time

import pytest

from vmm.log import sinks, stream
from vmm.log.sinks import FdSink, FileSink, PumpedSink, open_sink
from vmm.log.stream import open_anew, open_output, refusal, tell, unread_fifo


@pytest.fixture
def terminal():
    """A terminal that nobody reads: (the other side, the terminal)."""
    master, slave = pty.openpty()
    yield master, slave
    os.close(master)
    os.close(slave)


def write_much(sink: FdSink) -> float:
    """Far more than a terminal or a pipe takes; how long it took."""
    started = time.monotonic()
    for _ in range(3000):
        sink.write(6, "x", "y" * 100)
    return time.monotonic() - started


def test_a_terminal_that_nobody_reads_takes_no_time(terminal):
    sink = FdSink(open_anew(terminal[1]), owned=True)
    assert write_much(sink) < 5
    assert sink.lost > 0
    sink.close()
    # What we share with others stays as it is.
    assert os.get_blocking(terminal[1])


def test_a_line_that_was_begun_is_ended_first(terminal):
    master, slave = terminal
    sink = FdSink(open_anew(slave), owned=True)
    write_much(sink)
    text = b""
    os.set_blocking(master, False)
    for _ in range(200):
        try:
            text += os.read(master, 1 << 16)
        except BlockingIOError:
            sink.write(6, "x", "again")
            if b"again" in text:
                break
    lines = [line.partition(b"x: ")[2] for line in text.split(b"\r\n")]
    assert b"lines were lost here" in text
    assert all(len(line) in (0, 100, 5) for line in lines if b"lost" not in line)
    sink.close()


def test_another_user_s_terminal_is_left_to_a_thread(terminal, monkeypatch):
    monkeypatch.setattr(sinks, "open_anew", lambda fd: -1)
    monkeypatch.setitem(sinks.STREAMS, "/dev/stdout", terminal[1])
    sink = open_sink("/dev/stdout")
    assert type(sink) is PumpedSink
    assert write_much(sink) < 5
    started = time.monotonic()
    sink.close()
    assert time.monotonic() - started < 5


def test_telling_a_terminal_that_nobody_reads_ends(terminal):
    started = time.monotonic()
    tell(terminal[1], "much\n" * 100_000, seconds=0.3)
    assert 0.2 < time.monotonic() - started < 5


def test_telling_a_terminal_that_is_gone_is_no_error():
    master, slave = pty.openpty()
    os.close(master)
    tell(slave, "anybody?\n")
    assert not stream.is_terminal(slave)
    os.close(slave)


def test_a_fifo_may_wait_for_its_reader(tmp_path):
    path = tmp_path / "fifo"
    os.mkfifo(path)
    sink = FileSink(str(path))
    sink.write(6, "x", "early")
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    assert b"early" in os.read(reader, 4096)
    os.close(reader)
    assert write_much(sink) < 5
    assert sink.lost > 0
    sink.close()
    assert "lost" in unread_fifo(str(path))
    assert not unread_fifo(str(tmp_path / "none"))


@pytest.mark.parametrize("kind", ["folder", "socket", "block device"])
def test_what_is_no_place_for_text(tmp_path, kind):
    path = str(tmp_path)
    if kind == "socket":
        path = str(tmp_path / "socket")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
    elif kind == "block device":
        path = str(tmp_path / "device")
        try:
            os.mknod(path, 0o60600, os.makedev(7, 250))
        except PermissionError:
            pytest.skip("only root makes device nodes")
    told = {
        "folder": os.strerror(errno.EISDIR), "socket": "it is a socket", "block device": "a block",
    }[kind]  # fmt: skip
    assert told in refusal(path)
    with pytest.raises(OSError, match=r".") as caught:
        os.close(open_output(path))
    # A device that is not there says so itself.
    assert told in str(caught.value) or caught.value.errno in (errno.ENXIO, errno.ENODEV)
