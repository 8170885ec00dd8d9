"""Reads of what the page cache has: without the ring, and the same bytes as by it."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from devices.virtio.block import worker_class
from tests.unit.native.test_block_worker import (
    DATA_GPA,
    ENGINES,
    IN,
    IOERR,
    OK,
    SECTORS,
    STATUS_GPA,
    Rig,
)
from vmm._native.disk.blkpump import BlkWorker

READS = 40


def entries_made() -> int:
    """How many the rings of this process were given so far (proc(5), fdinfo)."""
    found = 0
    for fd in os.listdir("/proc/self/fd"):
        path = Path("/proc/self/fd", fd)
        if path.is_symlink() and os.readlink(path) == "anon_inode:[io_uring]":
            text = Path("/proc/self/fdinfo", fd).read_text()
            found += int(re.search(r"^SqTail:\s*(\d+)", text, re.M)[1])
    return found


def forget(rig: Rig) -> None:
    """Take the file out of the page cache, where the file system lets go of it."""
    os.fsync(rig.fd)
    os.posix_fadvise(rig.fd, 0, 0, os.POSIX_FADV_DONTNEED)


@pytest.mark.skipif(worker_class() is BlkWorker, reason="no io_uring here")
def test_the_ring_is_left_alone(image):
    rig = Rig(worker_class(), image)
    image.read_bytes()
    try:
        assert rig.request(IN, 0, length=512)[0] == OK
        before = entries_made()
        for sector in range(READS):
            assert rig.request(IN, sector, length=4096)[0] == OK
        # The doorbells come by it, one at most for each.
        assert entries_made() - before <= READS + 2
    finally:
        rig.close()


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.engine)
def test_a_file_that_is_in_memory_in_part(engine, image):
    """Every page cache has other holes; buffers end where they like."""
    whole = image.read_bytes()
    rig = Rig(engine, image)
    try:
        for turn in range(64):
            forget(rig)
            for place in range(turn % 3, SECTORS * 512 >> 14, 3):
                os.pread(rig.fd, 1 << 14, place << 14)
            lengths = [512 * (1 + turn % 7), 4096, 512 * (1 + turn % 5), 1 << 16]
            sector = turn * 37
            at, buffers = DATA_GPA, [rig.header(IN, sector)]
            for length in lengths:
                buffers.append((at, length, True))
                at += length
            rig.driver.add([*buffers, (STATUS_GPA, 1, True)])
            rig.ring()
            assert rig.wait()[1] == sum(lengths) + 1
            assert rig.memory.read(STATUS_GPA, 1)[0] == OK
            found = rig.memory.read(DATA_GPA, sum(lengths))
            assert found == whole[sector * 512 : sector * 512 + sum(lengths)], turn
    finally:
        rig.close()


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.engine)
def test_a_file_that_has_become_shorter(engine, image):
    rig = Rig(engine, image)
    try:
        os.truncate(image, 8192)
        assert rig.request(IN, 8, length=4096)[0] == OK
        assert rig.request(IN, 15, length=1024)[0] == IOERR
        assert rig.request(IN, 4000, length=512)[0] == IOERR
    finally:
        rig.close()
