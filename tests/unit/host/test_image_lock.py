"""Locks between open files: ours, and those that QEMU and Cloud Hypervisor take."""

from __future__ import annotations

import os
import signal

import pytest

from vmm._native.host.posix import ofd_lock
from vmm.errors import BusyError
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
