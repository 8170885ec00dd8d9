"""A guest is told to end: politely, twice, too late, by force."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time

import pytest

from tests.support.command import COMMAND, HALT, Command, finish
from tests.support.speed import patience
from vmm._native.host.posix import ofd_lock
from vmm.host.processes import process_start_time


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_and_the_timeout_kills(tmp_path, number):
    command = Command(tmp_path, HALT, STOP_TIMEOUT_SECONDS=1)
    process = command.start()
    process.send_signal(number)
    code, text = finish(process)
    assert code == 37
    assert "power button" in text
    assert "within 1 s" in text


def test_a_second_signal_kills_at_once(tmp_path):
    process = Command(tmp_path, HALT, STOP_TIMEOUT_SECONDS=600).start()
    process.send_signal(signal.SIGTERM)
    time.sleep(1.3)
    process.send_signal(signal.SIGTERM)
    assert finish(process)[0] == 37


def test_stop_kills_a_vmm_that_hangs(tmp_path):
    command = Command(tmp_path, HALT, STOP_TIMEOUT_SECONDS=0)
    process = command.start()
    # By then it has written down how long a stop waits; nobody would know it later.
    assert command.run("status")[0] == 0
    process.send_signal(signal.SIGSTOP)
    code, text = command.run("stop", seconds=60)
    assert code == 37
    assert "was killed" in text
    assert finish(process)[0] == -signal.SIGKILL


def test_stop_now_that_did_as_told_is_a_success(tmp_path):
    command = Command(tmp_path, HALT)
    process = command.start()
    assert command.run("stop", "--now")[0] == 0
    assert finish(process)[0] == 37
    process = command.start()
    process.send_signal(signal.SIGSTOP)
    code, text = command.run("stop", "--now")
    assert code == 0, text
    assert f"process {process.pid} is stopped by a signal" in text
    assert finish(process)[0] == -signal.SIGKILL


@pytest.mark.waits
def test_signals_of_a_moment_are_one_request(tmp_path):
    """timeout(1) signals its child and its whole group, so the child twice."""
    command = Command(tmp_path, HALT, STOP_TIMEOUT_SECONDS=3)
    process = command.start()
    began = time.monotonic()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        process.send_signal(number)
        time.sleep(0.1)
    code, text = command.run("stop")
    assert code == 37, text
    assert time.monotonic() - began > 2.5
    assert "within 3 s" in finish(process)[1]


OTHER_WAYS = ("file", "fifo", "link", "deaf")


@pytest.mark.parametrize(
    "how", ["gone", *[pytest.param(how, marks=pytest.mark.waits) for how in OTHER_WAYS]]
)
def test_a_socket_that_does_not_work_is_no_reason_to_kill(tmp_path, how):
    """The power button by SIGTERM, and the guest's whole time, which is told."""
    seconds = 7 if how == "gone" else 4
    command = Command(tmp_path, HALT, STOP_TIMEOUT_SECONDS=seconds)
    process = command.start()
    path = tmp_path / "vllmd-hypervisor/vm/control"
    path.unlink()
    listener = socket.socket(socket.AF_UNIX)
    if how == "file":
        path.touch()
    elif how == "fifo":
        os.mkfifo(path)
    elif how == "link":
        path.symlink_to("/run/nothing")
    elif how == "deaf":
        listener.bind(str(path))
        listener.listen()
    began = time.monotonic()
    code, text = command.run("stop", seconds=60)
    assert time.monotonic() - began > seconds - 0.5
    listener.close()
    assert code == 37, text
    assert f"process {process.pid} is asked by SIGTERM" in text
    for waited in range(3, seconds, 3):
        assert f"waiting for the guest to shut down, {waited} of {seconds} s" in text
    code, log = finish(process)
    assert code == 37, text + log
    assert log.count("power button pressed") == 1


def test_idle_clients_do_not_lock_stop_out(tmp_path):
    command = Command(tmp_path, HALT, STOP_TIMEOUT_SECONDS=1)
    process = command.start()
    links = []
    for _ in range(40):
        links.append(socket.socket(socket.AF_UNIX))
        links[-1].connect(str(tmp_path / "vllmd-hypervisor/vm/control"))
    assert command.run("status")[0] == 0
    code, text = command.run("stop")
    assert (code, "SIGTERM" in text) == (37, False), text
    for link in links:
        link.close()
    assert finish(process)[0] == 37


@pytest.mark.waits
def test_a_suspended_vmm_is_told_and_may_go_on(tmp_path):
    command = Command(tmp_path, HALT, STOP_TIMEOUT_SECONDS=5)
    process = command.start()
    process.send_signal(signal.SIGSTOP)
    code, text = command.run("status")
    assert code == 4, text
    assert f"kill -CONT {process.pid}" in text
    assert "unknown" in command.run("list")[1]
    stop = subprocess.Popen(
        [COMMAND, "stop"], env=command.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    time.sleep(4)
    process.send_signal(signal.SIGCONT)
    told = finish(stop)[1]
    assert f"kill -CONT {process.pid}" in told
    code, log = finish(process)
    assert code == 37, told + log
    assert "SIGTERM received" in log


def test_no_line_ends_the_guest(tmp_path):
    command = Command(tmp_path, HALT)
    process = command.start()
    lines = [b"[" * 4000, b'{"a":' * 700, b"\xff" * 100, b"9" * 4000, b'{"command": [[[]]]}', b""]
    for line in lines:
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(patience(10))
            link.connect(str(tmp_path / "vllmd-hypervisor/vm/control"))
            link.sendall(line + b"\n")
            assert b"error" in link.recv(1 << 16)
    assert command.run("status")[0] == 0
    command.run("stop", "--now")
    finish(process)


@pytest.mark.waits
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_another_pid_namespace(tmp_path):
    """A container that shares the folder: the lock tells, and the control socket works."""
    command = Command(tmp_path, HALT, STOP_TIMEOUT_SECONDS=1)
    process = command.start()
    inside = ("unshare", "--pid", "--fork", "--mount-proc")
    code, text = command.run("status", under=inside)
    assert (code, "vm: running" in text) == (0, True), text
    path = tmp_path / "vllmd-hypervisor/vm/control"
    path.rename(tmp_path / "kept")
    code, text = command.run("stop", under=inside, seconds=60)
    assert code == 1, text
    assert "still runs" in text
    assert "namespace" in text
    assert process.poll() is None
    (tmp_path / "kept").rename(path)
    code, text = command.run("stop", under=inside)
    assert code == 37, text
    assert finish(process)[0] == 37


@pytest.mark.waits
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_root_does_not_believe_a_user_s_folder(tmp_path):
    """A user holds the lock of a folder of his own, and names a process of root's in it."""
    command = Command(tmp_path, HALT)
    folder = tmp_path / "vllmd-hypervisor/vm"
    folder.mkdir(parents=True)
    victim = subprocess.Popen(["sleep", "60"])
    (folder / "lock").write_text(f"{victim.pid} {process_start_time(victim.pid)}\n")
    for path in (folder.parent, folder, folder / "lock"):
        os.chown(path, 1000, 1000)
    state = {"pid": victim.pid, "state": "running", "stop_timeout_s": 0, "kernel": "\x1b[2J"}
    (folder / "state.json").write_text(json.dumps(state))
    fd = os.open(folder / "lock", os.O_RDWR)
    ofd_lock(fd, True, 0, 0)
    for arguments in (["stop"], ["stop", "--now"]):
        code, text = command.run(*arguments, seconds=60)
        assert code == 1, text
        assert "cannot be killed from here" in text
    assert victim.poll() is None
    assert command.run("forget", "vm")[0] == 39
    os.close(fd)
    code, text = command.run("status")
    assert code == 3
    assert "\x1b" not in text
    assert r"\x1b[2J" in text
    victim.kill()
    victim.wait()
