"""Locks between open files: ours, and those that QEMU and Cloud Hypervisor take."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from vmm._native.host.posix import ofd_lock
from vmm.errors import BusyError
from vmm.host import image_lock
from vmm.host.image_lock import lock_holders, lock_image, would_lock

SIZE = 1 << 20
READ, WRITE = False, True
# What each peer locks: (exclusive, start, length).
QEMU_READER = [(False, 100, 1), (False, 201, 1), (False, 203, 1)]
QEMU_WRITER = [(False, 100, 1), (False, 101, 1), (False, 201, 1), (False, 203, 1)]
CLOUD_HYPERVISOR_READER = [(False, 0, SIZE)]
CLOUD_HYPERVISOR_WRITER = [(True, 0, SIZE)]


@pytest.fixture
def fds(tmp_path):
    """Two descriptors of one image that were opened apart."""
    path = tmp_path / "image"
    path.write_bytes(bytes(SIZE))
    opened = [os.open(path, os.O_RDWR) for _ in range(2)]
    yield opened
    for fd in opened:
        os.close(fd)


def locks(fd: int, read_only: bool) -> bool:
    try:
        lock_image("image", fd, read_only)
    except BusyError:
        return False
    return True


@pytest.mark.parametrize(
    ("first", "second", "both"),
    [(True, True, True), (True, False, False), (False, True, False), (False, False, False)],
)
def test_two_of_ours(fds, first, second, both):
    assert locks(fds[0], read_only=first)
    assert would_lock(fds[1], read_only=second) == both
    assert locks(fds[1], read_only=second) == both


@pytest.mark.parametrize(
    ("peer", "reader_may", "writer_may"),
    [
        (QEMU_READER, True, False),
        (QEMU_WRITER, False, False),
        (CLOUD_HYPERVISOR_READER, True, False),
        (CLOUD_HYPERVISOR_WRITER, False, False),
    ],
)
@pytest.mark.parametrize("read_only", [True, False])
def test_beside_a_peer(fds, peer, reader_may, writer_may, read_only):
    for exclusive, start, length in peer:
        ofd_lock(fds[0], exclusive, start, length)
    assert would_lock(fds[1], read_only) == (reader_may if read_only else writer_may)
    assert locks(fds[1], read_only) == (reader_may if read_only else writer_may)


class Dead:
    """A lock that no process has: the kernel alone holds the open file, on its way to a socket."""

    def __init__(self, path: Path) -> None:
        self._ends = socket.socketpair()
        fd = os.open(path, os.O_RDWR)
        lock_image("image", fd, False)
        socket.send_fds(self._ends[0], [b"x"], [fd])
        os.close(fd)

    def let_go(self) -> None:
        for end in self._ends:
            end.close()


@pytest.mark.parametrize("read_only", [True, False])
def test_a_dead_process_s_lock_is_waited_for(tmp_path, read_only):
    path = tmp_path / "image"
    path.write_bytes(bytes(SIZE))
    dead = Dead(path)
    later = threading.Timer(0.2, dead.let_go)
    fd = os.open(path, os.O_RDWR)
    try:
        assert not would_lock(fd, read_only)
        began = time.monotonic()
        later.start()
        lock_image("image", fd, read_only)
        assert time.monotonic() - began > 0.1
    finally:
        later.join()
        os.close(fd)


def test_one_that_stays_is_an_error_after_a_while(tmp_path, monkeypatch):
    monkeypatch.setattr(image_lock, "ENDED_SECONDS", 0.1)
    path = tmp_path / "image"
    path.write_bytes(bytes(SIZE))
    dead = Dead(path)
    fd = os.open(path, os.O_RDWR)
    try:
        with pytest.raises(BusyError, match="in use elsewhere"):
            lock_image("image", fd, False)
    finally:
        dead.let_go()
        os.close(fd)


def test_of_our_own_process_s_nobody_waits(fds):
    assert locks(fds[0], read_only=False)
    began = time.monotonic()
    with pytest.raises(BusyError, match=f"in use by process {os.getpid()}"):
        lock_image("image", fds[1], False)
    assert time.monotonic() - began < image_lock.ENDED_SECONDS


def test_the_holder_is_found(tmp_path):
    path = tmp_path / "image"
    path.write_bytes(bytes(SIZE))
    ready, done = os.pipe()
    child = os.fork()
    if child == 0:
        lock_image("image", os.open(path, os.O_RDWR), False)
        os.write(done, b"x")
        while True:
            signal.pause()
    os.read(ready, 1)
    try:
        assert lock_holders(os.stat(path)) == [child]
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
        os.close(ready)
        os.close(done)
