"""Event loop, instance folder, log sinks."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from vmm.errors import BusyError, ConfigError, HostError
from vmm.log.sinks import FdSink, FileSink, JournalSink, SyslogSink, open_sinks, stream_is_journal
from vmm.run.eventloop import EventLoop
from vmm.run.instance import Instance, name_from_image, runtime_directory


@pytest.fixture
def environment(tmp_path):
    return {"XDG_RUNTIME_DIR": str(tmp_path)}


@pytest.fixture
def loop():
    running = EventLoop()
    yield running
    running.close()


def test_descriptors_and_timers(loop):
    seen: list[str] = []
    reader, writer = os.pipe()

    def on_byte() -> None:
        os.read(reader, 1)
        seen.append("byte")

    loop.add(reader, on_byte)
    loop.call_later(0.02, lambda: seen.append("late"))
    loop.call_later(0.0, lambda: os.write(writer, b"x") and None)
    loop.call_later(0.01, lambda: seen.append("never")).cancel()
    loop.run_until(lambda: len(seen) == 2)
    assert seen == ["byte", "late"]
    loop.remove(reader)
    loop.remove(reader)
    os.close(reader)
    os.close(writer)


def test_a_callback_may_remove_another(loop):
    first, second = os.eventfd(1), os.eventfd(1)
    calls: list[int] = []

    def both(me: int, other: int) -> None:
        calls.append(me)
        loop.remove(other)
        loop.remove(me)

    loop.add(first, lambda: both(first, second))
    loop.add(second, lambda: both(second, first))
    loop.run_until(lambda: bool(calls))
    assert len(calls) == 1
    os.close(first)
    os.close(second)


def test_one_owner_at_a_time(environment):
    first = Instance("vm", environment)
    first.acquire()
    second = Instance("vm", environment)
    with pytest.raises(BusyError, match=f"process {os.getpid()}"):
        second.acquire()
    assert second.holder().pid == os.getpid()
    first.release()
    first.release()
    assert second.holder() is None
    second.acquire()
    second.release()
    assert os.stat(first.directory).st_mode & 0o777 == 0o700


def test_a_killed_owner_leaves_no_lock(environment):
    code = (
        "import sys, os; from vmm.run.instance import Instance; "
        "i = Instance('vm', {'XDG_RUNTIME_DIR': sys.argv[1]}); i.acquire(); "
        "print('held', flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, environment["XDG_RUNTIME_DIR"]], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert child.stdout.readline() == b"held\n"
    assert Instance("vm", environment).holder().pid == child.pid
    child.kill()
    child.wait()
    child.stdin.close()
    child.stdout.close()
    assert Instance("vm", environment).holder() is None


@pytest.fixture
def ended(environment):
    """A lock of a process that has ended, but still has it: this one has it in its place."""
    first = Instance("vm", environment)
    first.acquire()
    child = subprocess.Popen(["true"])
    child.wait()
    Path(first.directory, "lock").write_text(f"{child.pid} 1\n")
    yield first
    first.release()


def test_an_owner_that_ends_is_waited_for(environment, ended):
    later = threading.Timer(0.2, ended.release)
    later.start()
    second = Instance("vm", environment)
    second.acquire()
    later.join()
    assert Path(second.directory, "lock").read_text().split()[0] == str(os.getpid())
    second.release()


def test_one_that_does_not_end_is_told_after_a_while(environment, ended, monkeypatch):
    monkeypatch.setattr("vmm.run.instance.ENDED_SECONDS", 0.1)
    with pytest.raises(BusyError, match="is run by process"):
        Instance("vm", environment).acquire()


def test_state_survives_and_damage_is_ignored(environment):
    instance = Instance("vm", environment)
    assert instance.read_state() is None
    instance.acquire()
    instance.write_state({"state": "stopped"})
    assert instance.read_state() == {"state": "stopped"}
    with open(instance.state_path, "w") as file:
        file.write("{half")
    assert instance.read_state() is None
    instance.release()


def test_a_folder_of_somebody_else_is_refused(environment, tmp_path):
    (tmp_path / "vllmd-hypervisor").symlink_to("/tmp")
    with pytest.raises(HostError, match="not a folder of this user's"):
        Instance("vm", environment).acquire()


def test_names(tmp_path):
    image = tmp_path / "my disk.img"
    image.touch()
    link = tmp_path / "link"
    link.symlink_to(image)
    assert name_from_image(str(image)).startswith("my_disk-")
    assert name_from_image(str(link)) == name_from_image(str(image))
    assert name_from_image("/a/x.img") != name_from_image("/b/x.img")


def test_long_paths_and_odd_folders_are_refused():
    with pytest.raises(ConfigError, match="107 are possible"):
        Instance("vm", {"XDG_RUNTIME_DIR": "/" + "x" * 100})
    with pytest.raises(ConfigError, match="not an absolute path"):
        runtime_directory({"XDG_RUNTIME_DIR": "relative"})


def test_lines_of_a_stream(capfd):
    FdSink(1).write(6, "vmm.run.lifecycle", "hello\nworld \x1b[31m")
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].endswith(" info run.lifecycle: hello")
    assert lines[1].endswith(" info run.lifecycle: world \\x1b[31m")
    FdSink(1, priority_prefix=True).write(3, "vmm.x", "bad")
    assert capfd.readouterr().out == "<3>bad\n"


def test_a_reader_that_sleeps_is_not_waited_for():
    reader, writer = os.pipe()
    sink = FdSink(writer)
    for _ in range(3000):
        sink.write(6, "x", "y" * 100)
    assert sink.lost > 0
    while len(os.read(reader, 1 << 16)) == 1 << 16:
        pass
    sink.write(6, "x", "again")
    assert b"log lines were lost here" in os.read(reader, 1 << 16)
    os.close(reader)
    sink.write(6, "x", "gone")
    assert sink.lost == 1
    os.close(writer)


def test_files_are_made_and_reopened(tmp_path):
    path = tmp_path / "a" / "b.log"
    sink = FileSink(str(path))
    sink.write(6, "x", "one")
    path.rename(tmp_path / "old")
    sink.reopen()
    sink.write(6, "x", "two")
    assert "one" not in path.read_text()
    assert "two" in path.read_text()
    sink.close()


def test_a_full_disk_loses_lines_only():
    sink = FileSink("/dev/full")
    sink.write(6, "x", "one")
    assert sink.lost == 1
    sink.close()


def test_destinations_that_cannot_be_opened_are_errors(tmp_path):
    with pytest.raises(HostError, match="LOG_FILEPATH"):
        open_sinks((str(tmp_path / "good"), "/proc/nowhere/log"))


@pytest.mark.parametrize("kind", [JournalSink, SyslogSink])
def test_datagrams(tmp_path, kind):
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as daemon:
        daemon.bind(path)
        sink = kind(path)
        sink.write(
            4, "vmm.x", "two\nlines", [("VLLMD_VARIABLE", "A"), ("VLLMD_VARIABLE", "B\nC=1")]
        )
        data = daemon.recv(1 << 16)
    if kind is JournalSink:
        assert b"PRIORITY=4\n" in data
        assert b"\nVLLMD_VARIABLE=A\nVLLMD_VARIABLE=B C=1\n" in data
        assert data.endswith(b"MESSAGE\n" + (9).to_bytes(8, "little") + b"two\nlines\n")
    else:
        assert data.startswith(b"<28>")
        assert data.endswith(b"two | lines")
    sink.write(4, "vmm.x", "nobody listens")
    assert sink.lost == 1
    sink.close()


def test_journal_stream_is_recognised(tmp_path):
    with open(tmp_path / "x", "w") as file:
        stat = os.fstat(file.fileno())
        assert stream_is_journal(file.fileno(), f"{stat.st_dev}:{stat.st_ino}")
        assert not stream_is_journal(file.fileno(), "1:2")
    assert not stream_is_journal(999, "1:2")


def test_a_long_path_of_the_folder_is_blamed_on_who_chose_it(tmp_path):
    long = "/tmp/" + "x" * 100
    with pytest.raises(ConfigError) as caught:
        Instance("vm", {"XDG_RUNTIME_DIR": long})
    (told,) = caught.value.problems
    assert told.startswith(f"XDG_RUNTIME_DIR={long}: ")
    assert "shorter name" not in told
    room = int(told.partition("at most ")[2].split()[0])
    Instance("vm", {"XDG_RUNTIME_DIR": long[:room]})
    with pytest.raises(ConfigError):
        Instance("vm", {"XDG_RUNTIME_DIR": long[: room + 1]})


@pytest.mark.parametrize("text", ["\x9b31m", "\x7f", "\u202e", "\u2028", "\x1b[0m", "/\udcff"])
def test_no_sink_lets_control_characters_through(tmp_path, text):
    path = tmp_path / "log"
    (sink,) = open_sinks((str(path),))
    sink.write(6, "vmm.x", f"guest: {text}", [("FIELD", text)])
    sink.close()
    assert path.read_text().rstrip("\n").isprintable()
    for kind in (JournalSink, SyslogSink):
        data = kind.encode(kind.__new__(kind), 6, "vmm.x", text, [("FIELD", text)])
        assert text.encode(errors="surrogateescape") not in data
