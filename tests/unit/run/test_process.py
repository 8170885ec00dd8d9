"""What the kernel tells of another process."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from vmm.host.processes import process_start_time
from vmm.run import process
from vmm.run.process import Process, open_process


@pytest.fixture
def seen(child):
    found = open_process(child.pid, os.geteuid(), process_start_time(child.pid))
    yield found
    found.close()


def test_it_is_of_that_user_and_time(child):
    assert open_process(child.pid, os.geteuid() + 1) is None
    assert open_process(child.pid, os.geteuid(), 1) is None
    for pid in (0, -1, 2**31, 2**70):
        assert open_process(pid, os.geteuid()) is None


def test_one_that_ended(child, seen):
    assert not seen.wait(0)
    child.kill()
    assert seen.wait(5)
    assert open_process(child.pid, os.geteuid()) is None
    child.wait()
    seen.send(signal.SIGTERM)


def test_one_that_is_stopped(child, seen):
    assert seen.held() == ""
    seen.send(signal.SIGSTOP)
    deadline = time.monotonic() + 5
    while not seen.held():
        assert time.monotonic() < deadline
    assert f"kill -CONT {child.pid}" in seen.held()


@pytest.mark.parametrize(
    ("groups", "file", "content"),
    [
        ("0::/a.slice/b.service\n", "a.slice/b.service/cgroup.freeze", "1"),
        ("0::/a.slice/b.service\n", "a.slice/cgroup.freeze", "1"),
        ("3:cpu,cpuacct:/x\n2:freezer:/docker/7\n", "freezer/docker/7/freezer.state", "FROZEN"),
    ],
)
def test_one_that_is_frozen(tmp_path, monkeypatch, groups, file, content):
    real = process._text
    fakes = {"/proc/7/cgroup": groups, "/proc/7/stat": "7 (x) S 1"}
    monkeypatch.setattr(process, "GROUPS", str(tmp_path))
    monkeypatch.setattr(process, "_text", lambda path: fakes.get(path) or real(path))
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text("THAWED\n")
    assert Process(7, -1).held() == ""
    path.write_text(f"{content}\n")
    assert str(path) in Process(7, -1).held()


def test_the_service_that_it_is_in(monkeypatch):
    ours = "0::/vllmd.slice/vllmd-hypervisor@one.service"
    groups = {"/proc/7/cgroup": f"{ours}/.control\n", "/proc/self/cgroup": "0::/\n"}
    monkeypatch.setattr(process, "_text", lambda path: groups[path])
    assert Process(7, -1).unit() == "vllmd-hypervisor@one.service"
    groups["/proc/self/cgroup"] = ours
    assert Process(7, -1).unit() == ""
    groups["/proc/7/cgroup"] = "1:name=systemd:/user.slice\n0::/\n"
    assert Process(7, -1).unit() == ""


FREEZER = Path("/sys/fs/cgroup/freezer")


@pytest.mark.skipif(
    os.geteuid() != 0 or not FREEZER.is_dir(), reason="needs root and the first freezer"
)
def test_a_real_freezer(child, seen):
    group = FREEZER / f"vllmd-test-{child.pid}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(str(error))
    try:
        (group / "cgroup.procs").write_text(str(child.pid))
        (group / "freezer.state").write_text("FROZEN")
        assert str(group) in seen.held()
    finally:
        (group / "freezer.state").write_text("THAWED")
        (FREEZER / "cgroup.procs").write_text(str(child.pid))
        group.rmdir()
    assert seen.held() == ""
