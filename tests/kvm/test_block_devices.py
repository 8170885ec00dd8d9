"""Disks on block devices and on file systems that can do little. Needs root, for loop devices."""

from __future__ import annotations

import os
import struct
import traceback

import pytest

from devices.virtio.block import F_DISCARD, F_WRITE_ZEROES, Block
from tests.support.block_device import loop_device, mounted, needs_loop
from tests.support.seccomp import IOCTL, answer
from tests.unit.native.test_block_worker import (
    DISCARD,
    ENGINES,
    IN,
    OK,
    UNSUPP,
    WRITE_ZEROES,
    Rig,
)
from vmm._native.memory.guestmem import GuestMemory
from vmm.host.disk import BLKDISCARD, Disk

pytestmark = needs_loop
MIB = 1 << 20
SIZE = 8 * MIB
SECTORS = SIZE // 512
OLD = b"\xaa"


@pytest.fixture(params=ENGINES, ids=lambda e: e.engine)
def engine(request):
    return request.param


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "disk.img"
    path.write_bytes(OLD * SIZE)
    return path


@pytest.fixture(params=["ext2", "ramfs"])
def poor(request, tmp_path):
    """A file system that cannot zero a range; ramfs cannot even punch a hole."""
    with mounted(tmp_path, request.param) as folder:
        yield folder


@pytest.fixture
def unable(tmp_path):
    with mounted(tmp_path, "ramfs") as folder:
        yield folder


def offered(path: str) -> int:
    """The feature bits of a disk on it."""
    disk = Disk.open(path, read_only=False)
    memory = GuestMemory([(0, MIB)])
    try:
        features = Block("disk0", memory, disk, 1).features
    finally:
        disk.close()
        memory.close()
    return features & (F_DISCARD | F_WRITE_ZEROES)


def zeroes_are_zeroes(engine, path, block_device, first, count, unmap):
    rig = Rig(engine, path, sectors=SECTORS, block_device=block_device)
    try:
        status = rig.request(WRITE_ZEROES, data=struct.pack("<QII", first, count, unmap))
        assert status == (OK, 1)
        with open(path, "rb") as file:
            content = file.read()
        end = (first + count) * 512
        assert content[first * 512 : end].count(0) == count * 512
        assert content[: first * 512] == OLD * first * 512
        assert content[end:] == OLD * (SIZE - end)
    finally:
        rig.close()


RANGES = [(8, 64), (3, 4101), (0, SECTORS)]


@pytest.mark.parametrize("unmap", [0, 1])
@pytest.mark.parametrize(("first", "count"), RANGES)
def test_zeroes_on_a_block_device(engine, image, first, count, unmap):
    with loop_device(image) as device:
        zeroes_are_zeroes(engine, device, True, first, count, unmap)


@pytest.mark.parametrize("unmap", [0, 1])
@pytest.mark.parametrize(("first", "count"), RANGES)
def test_zeroes_on_a_block_device_with_large_sectors(engine, image, first, count, unmap):
    with loop_device(image, "--sector-size", "4096") as device:
        zeroes_are_zeroes(engine, device, True, first, count, unmap)


@pytest.mark.parametrize("unmap", [0, 1])
@pytest.mark.parametrize(("first", "count"), RANGES)
def test_zeroes_on_a_block_device_that_can_neither_zero_nor_discard(
    engine, unable, first, count, unmap
):
    path = unable / "disk.img"
    path.write_bytes(OLD * SIZE)
    with loop_device(path) as device:
        assert offered(device) == F_WRITE_ZEROES
        zeroes_are_zeroes(engine, device, True, first, count, unmap)


@pytest.mark.parametrize("unmap", [0, 1])
@pytest.mark.parametrize(("first", "count"), RANGES)
def test_zeroes_on_a_poor_file_system(engine, poor, first, count, unmap):
    path = poor / "disk.img"
    path.write_bytes(OLD * SIZE)
    zeroes_are_zeroes(engine, path, False, first, count, unmap)


def test_a_discard_that_turns_out_impossible(engine, unable):
    path = unable / "disk.img"
    path.write_bytes(OLD * SIZE)
    assert offered(str(path)) == F_WRITE_ZEROES
    rig = Rig(engine, path, sectors=SECTORS)
    assert rig.request(DISCARD, data=struct.pack("<QII", 8, 8, 0)) == (UNSUPP, 1)
    assert rig.request(IN, 8, length=512)[0] == OK
    assert path.read_bytes() == OLD * SIZE
    rig.close()


def test_what_can_be_discarded_is_offered(image):
    assert offered(str(image)) == F_DISCARD | F_WRITE_ZEROES
    with loop_device(image) as device:
        assert offered(device) == F_DISCARD | F_WRITE_ZEROES
        with open(device, "rb") as file:
            assert file.read() == OLD * SIZE  # finding out left it alone


def lazy_discard(engine, device: str) -> None:
    """On a disk that takes a discard and does nothing, as many do."""
    answer(IOCTL, 0, BLKDISCARD)
    zeroes_are_zeroes(engine, device, True, 8, 64, 1)


def test_zeroes_do_not_rest_on_discards(engine, image):
    with loop_device(image) as device:
        child = os.fork()
        if child == 0:
            try:
                lazy_discard(engine, device)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
