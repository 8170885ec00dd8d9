"""Threads of queues that stop between two requests, and go on as if nothing had been."""

from __future__ import annotations

import os
import random
import resource
import struct
import time

import pytest

from tests.support.speed import patience
from tests.unit.native.test_block_worker import (
    DATA_GPA,
    DISCARD,
    ENGINES,
    FLUSH,
    GET_ID,
    IN,
    IOERR,
    OK,
    OUT,
    SECTORS,
    STATUS_GPA,
    UNSUPP,
    WRITE_ZEROES,
    Rig,
)
from tests.unit.native.test_console_rng import Console, Queue
from vmm._native.disk.layer import Layer
from vmm._native.disk.overlay import Overlay
from vmm._native.disk.overlaypump import OverlayBlkWorker
from vmm._native.memory.guestmem import GuestMemory
from vmm._native.virtio.rngpump import RngWorker
from vmm._native.virtio.virtqueue import VirtQueue


def overlay_engine(queue, fd, *handles):
    """A worker over an overlay in memory above the rig's file."""
    worker = OverlayBlkWorker(queue, fd, *handles)
    size = handles[0] * 512
    worker.overlay = Overlay(fd, size, lambda: Layer(os.memfd_create("layer"), size))
    return worker


overlay_engine.engine = "overlay"


@pytest.fixture(params=[*ENGINES, overlay_engine], ids=lambda e: e.engine)
def engine(request):
    return request.param


def wait_for(condition) -> None:
    deadline = time.monotonic() + patience(10)
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_nothing_is_lost_between_pauses(engine, image):
    """A driver that goes on while its device stands still again and again."""
    rig = Rig(engine, image, size=16)
    content = image.read_bytes()
    done = 0
    try:
        for turn in range(200):
            rig.worker.pause()
            before = rig.queue.positions()
            header = rig.header(IN, turn)
            rig.memory.write(STATUS_GPA, b"\xff")
            rig.driver.add([header, (DATA_GPA, 512, True), (STATUS_GPA, 1, True)])
            if turn % 2:
                rig.ring()
            assert rig.queue.positions() == before
            rig.worker.start("disk-test")
            rig.wait()
            done += 1
            assert rig.memory.read(DATA_GPA, 512) == content[turn * 512 :][:512]
        rig.worker.pause()
        rig.worker.pause()
        assert rig.queue.positions()[:2] == (done, done)
    finally:
        rig.close()


def test_requests_in_flight_are_answered_before_the_pause_ends(engine, image):
    rig = Rig(engine, image, size=256)
    rng = random.Random(3)
    try:
        for _ in range(30):
            count = rng.randint(1, 40)
            for number in range(count):
                at = 0x130000 + 16 * number
                rig.memory.write(STATUS_GPA + number, b"\xff")
                header = rig.header(OUT, rng.randrange(SECTORS), at)
                rig.driver.add([header, (DATA_GPA, 512, False), (STATUS_GPA + number, 1, True)])
            rig.ring()
            rig.worker.pause()
            available, used, _ = rig.queue.positions()
            assert available == used == rig.driver.used_idx()
            rig.worker.start("disk-test")
            wait_for(lambda: rig.driver.used_idx() == rig.driver.avail_idx)
            while rig.driver.take_used():
                pass
            assert rig.memory.read(STATUS_GPA, count) == bytes(count)
    finally:
        rig.close()


def test_a_long_range_is_finished_and_not_given_up(engine, tmp_path):
    """A pause is no end: what a driver asked for comes about."""
    path = tmp_path / "large.img"
    sectors = 8 << 21  # 8 GiB, in pieces of 1 GiB
    with open(path, "wb") as file:
        file.truncate(sectors * 512)
    rig = Rig(engine, path, sectors=sectors)
    try:
        for _ in range(10):
            rig.memory.write(STATUS_GPA, b"\xff")
            rig.memory.write(DATA_GPA, struct.pack("<QII", 0, sectors, 1))
            buffers = [rig.header(WRITE_ZEROES), (DATA_GPA, 16, False), (STATUS_GPA, 1, True)]
            rig.driver.add(buffers)
            rig.ring()
            rig.worker.pause()
            rig.worker.start("disk-test")
            rig.wait()
            assert rig.memory.read(STATUS_GPA, 1) == b"\0"
    finally:
        rig.close()


def test_a_queue_goes_on_with_another_worker(engine, image):
    rig = Rig(engine, image)
    content = image.read_bytes()
    try:
        for turn in range(5):
            assert rig.request(IN, turn, length=512)[0] == OK
        rig.worker.pause()
        positions = rig.queue.positions()
        rig.queue = VirtQueue(rig.memory, 16, *rig.driver.areas())
        rig.queue.set_positions(*positions)
        rig.worker = engine(
            rig.queue, rig.fd, SECTORS, False, False, b"", rig.kick, rig.call, rig.config
        )
        rig.worker.start("disk-test")
        assert rig.request(IN, 9, length=512)[0] == OK
        assert rig.memory.read(DATA_GPA, 512) == content[9 * 512 :][:512]
        for wrong in (-1, 1 << 16, None):
            with pytest.raises((OverflowError, TypeError)):
                rig.queue.set_positions(wrong, 0, 0)
    finally:
        rig.close()


def test_a_broken_ring_stays_broken(engine, image):
    rig = Rig(engine, image)
    try:
        rig.driver.set_avail_idx(500)
        rig.ring()
        wait_for(lambda: rig.worker.broken)
        rig.worker.pause()
        os.eventfd_read(rig.config)
        rig.worker.start("disk-test")
        time.sleep(0.05)
        with pytest.raises(BlockingIOError):
            os.eventfd_read(rig.config)
    finally:
        rig.close()


def test_a_console_that_pauses(tmp_path):
    memory = GuestMemory([(0, 1 << 20)])
    console = Console(memory)
    try:
        for turn in range(20):
            console.worker.pause()
            console.port.host_write(b"in%d" % turn)
            console.receive.driver.add([(0x20000, 16, True)])
            console.worker.start("console-test")
            _, used = console.receive.used()
            assert memory.read(0x20000, used) == b"in%d" % turn
            memory.write(0x21000, b"out")
            console.transmit.driver.add([(0x21000, 3, False)])
            console.transmit.ring()
            console.transmit.used()
            assert os.read(console.reader, 3) == b"out"
    finally:
        console.close()
        memory.close()


def test_a_generator_that_pauses():
    memory = GuestMemory([(0, 1 << 20)])
    queue = Queue(memory, 0x1000)
    config = os.eventfd(0, os.EFD_NONBLOCK)
    worker = RngWorker(queue.queue, queue.kick, queue.call, config)
    try:
        for _ in range(20):
            queue.driver.add([(0x20000, 64, True)])
            worker.start("rng-test")
            assert queue.used()[1] == 64
            worker.pause()
        assert queue.queue.positions()[:2] == (20, 20)
    finally:
        worker.stop()
        queue.close()
        os.close(config)
        memory.close()


# --- over an overlay ---


def test_a_disk_over_an_overlay(image):
    original = image.read_bytes()
    rig = Rig(overlay_engine, image)
    try:
        assert rig.worker.counters()["errors"] == 0
        assert rig.worker.engine == "overlay"
        assert rig.request(IN, 7, length=8192) == (OK, 8193)
        assert rig.memory.read(DATA_GPA, 8192) == original[7 * 512 :][:8192]
        assert rig.request(OUT, 9, data=b"w" * 1024) == (OK, 1)
        assert rig.request(FLUSH) == (OK, 1)
        assert rig.request(IN, 8, length=2048) == (OK, 2049)
        expected = original[8 * 512 : 9 * 512] + b"w" * 1024 + original[11 * 512 : 12 * 512]
        assert rig.memory.read(DATA_GPA, 2048) == expected
        for kind, unmap in ((WRITE_ZEROES, 0), (WRITE_ZEROES, 1), (DISCARD, 0)):
            assert rig.request(kind, data=struct.pack("<QII", 20, 17, unmap)) == (OK, 1)
            assert rig.request(IN, 19, length=19 * 512)[0] == OK
            read = rig.memory.read(DATA_GPA, 19 * 512)
            assert read == original[19 * 512 : 20 * 512] + bytes(17 * 512) + read[18 * 512 :]
            assert read[18 * 512 :] == original[37 * 512 : 38 * 512]
        assert rig.request(GET_ID, length=20) == (OK, 21)
        assert rig.request(IN, SECTORS - 1, length=1024)[0] == IOERR
        assert rig.request(OUT, SECTORS, data=bytes(512))[0] == IOERR
        assert rig.request(99)[0] == UNSUPP
        assert image.read_bytes() == original
    finally:
        rig.close()


def test_an_overlay_that_is_full_is_an_error_of_the_request_alone(image):
    original = image.read_bytes()
    rig = Rig(overlay_engine, image)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        # What a full file system does, for offsets of this file.
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        assert rig.request(OUT, 8, data=b"w" * 4096) == (IOERR, 1)
        assert rig.request(OUT, 9, data=b"w" * 512) == (IOERR, 1)
        assert rig.request(OUT, 0, data=b"w" * 4096) == (OK, 1)
        assert rig.request(IN, 8, length=4096)[0] == OK
        assert rig.memory.read(DATA_GPA, 4096) == original[4096:8192]
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert rig.request(OUT, 9, data=b"w" * 512) == (OK, 1)
        assert rig.request(IN, 9, length=512)[0] == OK
        assert rig.memory.read(DATA_GPA, 512) == b"w" * 512
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        rig.close()


def test_scattered_requests_over_an_overlay(image):
    """More buffers than one call takes, and a range half in the layer and half in the image."""
    original = bytearray(image.read_bytes())
    rig = Rig(overlay_engine, image, size=256)
    try:
        rng = random.Random(5)
        for _ in range(20):
            sector, pieces = rng.randrange(SECTORS - 400), rng.randint(1, 200)
            data = rng.randbytes(512 * pieces)
            rig.memory.write(DATA_GPA, data)
            parts = [(DATA_GPA + 512 * n, 512, False) for n in range(pieces)]
            rig.driver.add([rig.header(OUT, sector), *parts, (STATUS_GPA, 1, True)])
            rig.ring()
            rig.wait()
            original[sector * 512 : sector * 512 + len(data)] = data
            start = max(0, sector - 50)
            parts = [(DATA_GPA + 1024 * n, 1024, True) for n in range(150)]
            rig.driver.add([rig.header(IN, start), *parts, (STATUS_GPA, 1, True)])
            rig.ring()
            rig.wait()
            expected = original[start * 512 :][: 1024 * 150]
            if len(expected) == 1024 * 150:
                assert rig.memory.read(STATUS_GPA, 1) == b"\0"
                assert rig.memory.read(DATA_GPA, len(expected)) == expected
    finally:
        rig.close()


def test_a_worker_without_its_overlay_does_not_start(image):
    rig = Rig(overlay_engine, image)
    try:
        rig.worker.pause()
        rig.worker.overlay = None
        with pytest.raises(ValueError, match="no overlay"):
            rig.worker.start("disk-test")
    finally:
        rig.close()
