"""What the kernel tells of processes."""

from __future__ import annotations

import os
import signal

import pytest

from vmm.host.processes import is_ending, process_start_time


def test_one_that_lives(child):
    assert not is_ending(os.getpid())
    assert not is_ending(child.pid)
    assert process_start_time(child.pid) >= process_start_time(os.getpid()) > 0


def test_one_that_ended_and_is_not_waited_for(child):
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert is_ending(child.pid)
    assert process_start_time(child.pid) > 0


def test_one_that_is_not_there(child):
    child.kill()
    child.wait()
    assert is_ending(child.pid)
    assert process_start_time(child.pid) == 0


def test_a_signal_that_waits_is_no_end(child):
    child.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
    child.send_signal(signal.SIGTERM)
    assert not is_ending(child.pid)


@pytest.mark.parametrize(
    ("state", "flags", "signals", "ending"),
    [("R", 0x400000, 0, False), ("R", 0x400004, 0, True), ("D", 0x400000, 1 << 8, True),
     ("D", 0x400000, 1 << 14, False), ("Z", 0, 0, True), ("X", 0, 0, True), ("T", 0, 0, False)],
)  # fmt: skip
def test_what_the_kernel_tells_of_one_that_was_killed(monkeypatch, state, flags, signals, ending):
    fields = [state, *["0"] * 5, str(flags), *["0"] * 21, str(signals), *["0"] * 20]
    line = f"7 (a ) b) {' '.join(fields)}\n".encode()
    monkeypatch.setattr("vmm.host.processes.read_file", lambda path: line)
    assert is_ending(7) == ending
