"""What is believed of an instance's folder, which may be another user's."""

from __future__ import annotations

import json
import os
import socket
import subprocess

import pytest

from vmm.errors import BusyError, HostError
from vmm.host.processes import process_start_time
from vmm.run.folder import Folder
from vmm.run.instance import FOLDER, Instance


@pytest.fixture
def place(tmp_path):
    return str(tmp_path / FOLDER)


@pytest.fixture
def instance(tmp_path):
    """A running one: this process's."""
    made = Instance("vm", {"XDG_RUNTIME_DIR": str(tmp_path)})
    made.acquire()
    yield made
    made.release()


@pytest.fixture
def folder(instance, place):
    made = Folder(place, "vm")
    yield made
    made.close()


@pytest.fixture
def other(child):
    """A process that has nothing to do with it."""
    yield child
    assert child.poll() is None, "it was killed"


def claim(folder: Folder, pid: int, start_time: int) -> None:
    with open(f"{folder.path}/lock", "w") as file:
        file.write(f"{pid} {start_time}\n")


def test_a_running_one(folder):
    assert folder.running
    process = folder.process()
    assert process.pid == os.getpid()
    assert process.held() == ""
    assert not process.wait(0)
    process.close()
    assert folder.unseen == ""


def test_an_ended_one(folder, instance):
    instance.release()
    assert not folder.running


def test_the_lock_tells_whatever_the_pid(folder, instance):
    """In another pid namespace the pid is nobody's, or another process's."""
    for pid in (0, 1, 2**22 + 1, 2**40):
        claim(folder, pid, 5)
        assert folder.running
        assert folder.process() is None
        assert "namespace" in folder.unseen


def test_the_maker_of_the_socket_is_known_to_the_kernel(folder):
    claim(folder, 7, 5)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{folder.path}/control")
        listener.listen()
        process = folder.process()
    assert process.pid == os.getpid()
    process.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_process_of_another_user_is_not_believed(folder, other):
    """A user who owns a folder names a process of root's in it."""
    os.chown(folder.path, 1000, 1000)
    os.chown(f"{folder.path}/lock", 1000, 1000)
    claim(folder, other.pid, process_start_time(other.pid))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{folder.path}/control")
        listener.listen()
        again = Folder(folder.place, "vm")
        assert again.running
        assert again.process() is None
        assert "user 1000" in again.unseen
        with pytest.raises(PermissionError):
            again.ask({"command": "stop"})
        again.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_folder_and_lock_belong_together(folder, other):
    os.chown(f"{folder.path}/lock", 1000, 1000)
    claim(folder, other.pid, process_start_time(other.pid))
    assert folder.process() is None
    assert "different users" in folder.unseen


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize("ids", [(1000, 0, 0), (0, 1000, 0), (1000, 1000, 0), (0, 0, 1000)])
def test_a_process_of_two_users_is_not_believed(folder, ids):
    """One that a user started and that has another's rights: su, sudo, passwd."""
    code = f"import os, sys; os.setresuid{ids}; print('up', flush=True); sys.stdin.read()"
    process = subprocess.Popen(
        ["python3", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"up\n"
    claim(folder, process.pid, process_start_time(process.pid))
    for uid in (0, 1000):
        for path in (folder.path, f"{folder.path}/lock"):
            os.chown(path, uid, uid)
        again = Folder(folder.place, "vm")
        assert again.process() is None
        again.close()
    process.communicate()


def test_a_reused_pid_is_another_process(folder, other):
    claim(folder, other.pid, process_start_time(other.pid) - 1)
    assert folder.process() is None


@pytest.mark.parametrize("name", ["lock", "state.json"])
@pytest.mark.parametrize("kind", ["fifo", "link", "socket", "folder"])
def test_nothing_but_plain_files_is_opened(folder, instance, tmp_path, name, kind):
    path = f"{folder.path}/{name}"
    if name == "lock":
        os.unlink(path)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        os.mkdir(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
    else:
        (tmp_path / "elsewhere").write_text(json.dumps({"pid": os.getpid(), "secret": 1}))
        os.symlink(tmp_path / "elsewhere", path)
    if name == "state.json":
        assert folder.state() == {}
        assert instance.read_state() is None
        return
    with pytest.raises(OSError, match="."):
        Folder(folder.place, "vm")
    with pytest.raises(HostError, match="cannot use the instance folder"):
        instance.holder()


def test_folders_are_not_reached_by_links(folder, place, tmp_path):
    os.symlink("vm", f"{place}/alias")
    with pytest.raises(OSError, match="."):
        Folder(place, "alias")
    os.symlink(place, tmp_path / "away")
    with pytest.raises(OSError, match="."):
        Folder(str(tmp_path / "away"), "vm")


def test_states_that_are_another_run_s(folder, instance):
    start_time = process_start_time(os.getpid())
    for state in ({"pid": 1}, {"pid": os.getpid(), "start_time": 1}, {"start_time": start_time}):
        instance.write_state(state)
        assert folder.state() == {}
    for state in ({"pid": os.getpid()}, {"pid": os.getpid(), "start_time": start_time}):
        instance.write_state(state)
        assert folder.state() == state


def test_a_state_without_end(folder):
    with open(f"{folder.path}/state.json", "w") as file:
        file.write('{"pid": 1, "x": "')
        file.truncate(1 << 33)
    assert folder.state() == {}


def test_an_ended_one_is_forgotten(folder, instance):
    instance.write_state({"state": "stopped"})
    with pytest.raises(BusyError, match="stop it first"):
        folder.forget()
    assert os.path.exists(instance.state_path)
    instance.release()
    folder.forget()
    assert not os.path.exists(folder.path)


def test_what_is_not_ours_is_kept(folder, instance):
    with open(f"{folder.path}/precious", "w") as file:
        file.write("x")
    instance.release()
    with pytest.raises(HostError, match="see what else is in it"):
        folder.forget()
    assert os.path.exists(f"{folder.path}/precious")


def test_a_lock_that_was_removed_is_nobody_s(instance, tmp_path, monkeypatch):
    """Opened before it was forgotten, locked after: two would run."""
    from vmm.run import instance as module

    instance.release()
    real = module.ofd_lock
    calls = []

    def slow(fd: int, *arguments: object) -> None:
        if not calls:
            calls.append(1)
            folder = Folder(str(tmp_path / FOLDER), "vm")
            folder.forget()
            folder.close()
        real(fd, *arguments)

    monkeypatch.setattr(module, "ofd_lock", slow)
    instance.acquire()
    assert Instance("vm", {"XDG_RUNTIME_DIR": str(tmp_path)}).holder().pid == os.getpid()


def test_a_start_that_failed_leaves_nothing_that_it_made(tmp_path):
    environment = {"XDG_RUNTIME_DIR": str(tmp_path)}
    for known in (False, True):
        made = Instance("vm", environment)
        made.acquire()
        made.write_state({"state": "failed"})
        made.discard()
        made.release()
        assert os.path.exists(made.directory) is known
        made.acquire()
        made.release()
