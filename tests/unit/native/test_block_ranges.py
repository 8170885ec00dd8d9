"""Discards and zeroes where the file system can do little, their end, and rings that misbehave."""

from __future__ import annotations

import errno
import os
import select
import struct
import threading
import time
import traceback
from pathlib import Path

import pytest

from tests.support.seccomp import IO_URING_ENTER, answer
from tests.unit.native.test_block_worker import (
    DISCARD,
    ENGINES,
    GET_ID,
    HEADER_GPA,
    IN,
    OK,
    STATUS_GPA,
    UNSUPP,
    WRITE_ZEROES,
    Rig,
)
from vmm.host.disk import Disk
from vmm.host.image_lock import lock_image

TMPFS = Path("/dev/shm")
SECTORS = 8192


@pytest.fixture(params=ENGINES, ids=lambda e: e.engine)
def engine(request):
    return request.param


@pytest.fixture
def tmpfs_image():
    """tmpfs can punch holes, and cannot zero a range that stays allocated."""
    path = TMPFS / f"vllmd-test-{os.getpid()}.img"
    path.write_bytes(b"\xaa" * SECTORS * 512)
    yield path
    path.unlink()


@pytest.mark.parametrize("unmap", [0, 1])
@pytest.mark.parametrize(("first", "count"), [(8, 16), (1, 7001), (0, SECTORS), (2047, 2)])
def test_zeroes_where_ranges_cannot_be_zeroed(engine, tmpfs_image, unmap, first, count):
    rig = Rig(engine, tmpfs_image, sectors=SECTORS)
    before = tmpfs_image.read_bytes()
    for _ in range(2):  # the second time it is known what does not work
        data = struct.pack("<QII", first, count, unmap)
        assert rig.request(WRITE_ZEROES, data=data) == (OK, 1)
    assert rig.request(IN, first, length=512)[0] == OK
    after = tmpfs_image.read_bytes()
    rig.close()
    end = (first + count) * 512
    assert after == before[: first * 512] + bytes(count * 512) + before[end:]


def test_zeroes_without_unmap_keep_the_space(engine, tmpfs_image):
    rig = Rig(engine, tmpfs_image, sectors=SECTORS)
    blocks = os.stat(tmpfs_image).st_blocks
    assert rig.request(WRITE_ZEROES, data=struct.pack("<QII", 0, SECTORS, 0)) == (OK, 1)
    assert os.stat(tmpfs_image).st_blocks == blocks
    assert rig.request(WRITE_ZEROES, data=struct.pack("<QII", 0, SECTORS, 1)) == (OK, 1)
    assert os.stat(tmpfs_image).st_blocks < blocks
    rig.close()


def test_a_discard_that_is_not_offered(engine, tmpfs_image):
    rig = Rig(engine, tmpfs_image, sectors=SECTORS)
    rig.worker.can_discard = False
    assert rig.request(DISCARD, data=struct.pack("<QII", 0, 8, 0)) == (UNSUPP, 1)
    assert rig.request(WRITE_ZEROES, data=struct.pack("<QII", 0, 8, 1)) == (OK, 1)
    rig.close()


def test_zeroing_much_ends_with_the_worker(engine):
    """Hours of writing on a slow disk must not keep a reset waiting."""
    path = TMPFS / f"vllmd-test-{os.getpid()}.img"
    size = 4 << 30
    with open(path, "wb") as file:
        file.truncate(size)
    rig = Rig(engine, path, sectors=size // 512)
    try:
        rig.memory.write(0x120000, struct.pack("<QII", 0, size // 512, 0))
        rig.driver.add([rig.header(WRITE_ZEROES), (0x120000, 16, False), (STATUS_GPA, 1, True)])
        rig.ring()
        while not os.stat(path).st_blocks:
            time.sleep(0.001)
        began = time.monotonic()
        rig.worker.stop()
        assert time.monotonic() - began < 5
        assert rig.memory.read(STATUS_GPA, 1)[0] != OK  # it is not done
    finally:
        path.unlink()
        rig.close()


def test_a_driver_that_never_stops_does_not_keep_the_worker(engine, tmpfs_image):
    size = 4096
    rig = Rig(engine, tmpfs_image, size=size)
    rig.memory.write(HEADER_GPA, struct.pack("<IIQ", GET_ID, 0, 0))
    rig.driver.descriptor(0, HEADER_GPA, 16, 1, 1)
    rig.driver.descriptor(1, HEADER_GPA + 64, 21, 2)  # all entries of the ring name this chain
    done = threading.Event()

    def publish():
        while not done.is_set():
            rig.driver.set_avail_idx(rig.driver.used_idx() + size & 0xFFFF)
            os.eventfd_write(rig.kick, 1)

    driver = threading.Thread(target=publish)
    driver.start()
    time.sleep(0.2)
    stopper = threading.Thread(target=rig.worker.stop)
    stopper.start()
    stopper.join(5)
    stopped = not stopper.is_alive()
    done.set()
    driver.join()
    stopper.join()
    rig.close()
    assert stopped


def use_a_ring_that_fails(path: Path) -> None:
    rig = Rig(ENGINES[1], path)
    assert rig.request(IN, 0, length=512)[0] == OK
    rig.worker.pause()
    answer(IO_URING_ENTER, errno.EBADF)  # from now on, for the threads that are made now
    rig.worker.start("disk-test")
    rig.driver.add([rig.header(IN), (0x120000, 512, True), (STATUS_GPA, 1, True)])
    rig.ring()
    poll = select.poll()
    poll.register(rig.config, select.POLLIN)
    assert poll.poll(5000), "no configuration interrupt"
    assert rig.worker.broken < 0
    used = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - used < 0.1
    began = time.monotonic()
    rig.close()
    assert time.monotonic() - began < 5


@pytest.mark.skipif(len(ENGINES) == 1, reason="this kernel has no io_uring for us")
def test_a_ring_that_fails_for_good_neither_spins_nor_hangs(tmpfs_image):
    child = os.fork()
    if child == 0:
        try:
            use_a_ring_that_fails(tmpfs_image)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.skipif(len(ENGINES) == 1, reason="this kernel has no io_uring for us")
def test_an_image_is_free_when_its_worker_has_ended(tmp_path):
    """The ring ends later than its descriptor is closed, and must not keep the image's lock."""
    path = tmp_path / "image"
    path.write_bytes(bytes(SECTORS * 512))
    for _ in range(20):
        rig = Rig(ENGINES[1], path)
        lock_image(str(path), rig.fd, False)
        assert rig.request(IN, 0, length=512)[0] == OK
        rig.close()


def test_what_can_be_discarded_is_found_out_without_a_trace(tmp_path):
    path = tmp_path / "image"
    path.write_bytes(b"\xaa" * 5000)
    disk = Disk.open(str(path), read_only=False)
    assert disk.can_discard
    disk.close()
    assert path.read_bytes() == b"\xaa" * 5000
    disk = Disk.open(str(path), read_only=True)
    assert not disk.can_discard
    disk.close()
