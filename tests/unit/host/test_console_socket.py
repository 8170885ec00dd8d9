"""A console's Unix socket: nobody else may use it, and asking about it disturbs nobody."""

from __future__ import annotations

import os
import resource
import socket
import stat
import tempfile
import time

import pytest

from vmm.check import files
from vmm.errors import HostError
from vmm.host.console import HostConsole
from vmm.settings.parse import Endpoint

OTHER_USER = 65534


@pytest.fixture
def path(tmp_path):
    # Short, because a socket's path may not have more than 107 bytes.
    return str(tmp_path / "s")


@pytest.fixture
def console(path):
    made = HostConsole("socket", path)
    made.start("console")
    yield made
    made.close()


def client(path: str) -> socket.socket:
    link = socket.socket(socket.AF_UNIX)
    link.connect(path)
    link.settimeout(5)
    return link


def test_its_mode_is_not_left_to_umask(path):
    old = os.umask(0)
    try:
        console = HostConsole("socket", path)
        pseudo = HostConsole("pty")
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        assert stat.S_IMODE(os.stat(pseudo.path).st_mode) == 0o600
    finally:
        os.umask(old)
    console.close()
    pseudo.close()
    assert not os.path.exists(path)


def test_asking_leaves_its_client_alone(console, path):
    with client(path) as link:
        console.port.guest_write(b"one")
        assert link.recv(10) == b"one"
        (finding,) = files.consoles([("serial", Endpoint("socket", path))])
        assert "already in use" in finding.found
        with pytest.raises(HostError, match="already in use"):
            HostConsole("socket", path)
        console.port.guest_write(b"two")
        assert link.recv(10) == b"two"


def test_a_stale_one_is_replaced(path):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    (finding,) = files.consoles([("serial", Endpoint("socket", path))])
    assert finding.code == 0
    console = HostConsole("socket", path)
    console.close()


def test_two_consoles_cannot_have_one(path):
    ends = [(name, Endpoint("socket", path)) for name in ("console", "serial")]
    first, second = files.consoles(ends)
    assert (first.code, second.code) == (0, HostError.exit_code)


def test_somebody_else_s_of_the_same_name_stays(console, path):
    os.unlink(path)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(path)
        console.close()
        assert os.path.exists(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_other_users_are_not_served():
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        path = f"{folder}/s"
        console = HostConsole("socket", path)
        console.start("console")
        os.chmod(path, 0o666)
        pid = os.fork()
        if pid == 0:
            os.setuid(OTHER_USER)
            os._exit(client(path).recv(10) != b"")
        assert os.waitpid(pid, 0)[1] == 0
        assert console.status()["refused"] == 1
        with client(path) as own:
            console.port.guest_write(b"ours")
            assert own.recv(10) == b"ours"
        console.close()


def test_without_descriptors_nothing_spins(console, path):
    link = socket.socket(socket.AF_UNIX)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(int(fd) for fd in os.listdir("/proc/self/fd")) + 1
    gaps = [os.open(os.devnull, os.O_RDONLY) for _ in range(used)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (link.fileno() + 1, hard))
    try:
        link.connect(path)
        before = time.process_time()
        time.sleep(1)
        spent = time.process_time() - before
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in gaps:
            os.close(fd)
    assert spent < 0.3
    link.settimeout(5)
    console.port.guest_write(b"late")
    assert link.recv(10) == b"late"
    link.close()
