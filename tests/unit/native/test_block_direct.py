"""Direct I/O: what is not aligned goes by a buffer between, and nothing else does."""

from __future__ import annotations

import fcntl
import os
import random
import struct
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.native.test_block_worker import (
    DATA_GPA,
    ENGINES,
    FLUSH,
    IN,
    IOERR,
    OK,
    OUT,
    SECTORS,
    STATUS_GPA,
    WRITE_ZEROES,
    Rig,
)
from vmm._native.disk.blkpump import BlkWorker
from vmm.errors import HostError
from vmm.host import direct
from vmm.host.disk import Disk
from vmm.settings.images import ImageSpec

# What file systems ask for: disks of small sectors, of large ones, and careful file systems.
RULES = [(512, 512), (512, 4096), (4096, 4096)]


def direct_rig(engine, path, rule, **more) -> Rig:
    """A rig whose file does direct I/O, with a rule that may be stricter than the disk's."""
    rig = Rig(engine, path, size=64, **more)
    rig.worker.stop()
    flags = fcntl.fcntl(rig.fd, fcntl.F_GETFL)
    fcntl.fcntl(rig.fd, fcntl.F_SETFL, flags | os.O_DIRECT)
    rig.worker.set_direct(*rule)
    rig.worker.start("disk-test")
    return rig


@pytest.fixture(params=ENGINES, ids=lambda e: e.engine)
def engine(request):
    return request.param


@pytest.fixture(params=RULES, ids=str)
def rule(request):
    return request.param


@pytest.fixture
def image(image):
    """On a file system with direct I/O."""
    try:
        os.close(os.open(image, os.O_RDWR | os.O_DIRECT))
    except OSError:
        pytest.skip(f"{image.parent} has no direct I/O")
    return image


def pieces_of(rng: random.Random, total: int, writable: bool) -> list[tuple[int, int, bool]]:
    """Buffers of odd sizes at odd addresses; or one, or aligned ones."""
    kind = rng.randrange(3)
    if kind == 0:
        return [(DATA_GPA + rng.choice((0, 1, 4, 512)), total, writable)]
    if kind == 1:
        return [(DATA_GPA + at, 512, writable) for at in range(0, total, 512)][:50]
    found, at, left = [], DATA_GPA, total
    while left and len(found) < 50:
        length = left if len(found) == 49 else min(left, rng.randint(1, 3000))
        found.append((at, length, writable))
        at += length + rng.randint(0, 9)
        left -= length
    return found


def test_any_buffers_at_any_place(engine, image, rule):
    rig = direct_rig(engine, image, rule)
    model = bytearray(image.read_bytes())
    rng = random.Random(str(rule))
    try:
        for _ in range(150):
            writes = rng.random() < 0.5
            pieces = pieces_of(rng, 512 * rng.choice((1, 2, 8, 9, 17, 300)), not writes)
            total = sum(length for _, length, _ in pieces) // 512 * 512
            if total != sum(length for _, length, _ in pieces):
                continue
            sector = rng.randrange(SECTORS - total // 512)
            if rng.random() < 0.3:
                sector &= ~7
            model_range = slice(sector * 512, sector * 512 + total)
            if writes:
                data = rng.randbytes(total)
                model[model_range] = data
                at = 0
                for gpa, length, _ in pieces:
                    rig.memory.write(gpa, data[at : at + length])
                    at += length
            head = rig.header(OUT if writes else IN, sector)
            rig.driver.add([head, *pieces, (STATUS_GPA, 1, True)])
            rig.ring()
            rig.wait()
            assert rig.memory.read(STATUS_GPA, 1)[0] == OK
            if not writes:
                got = b"".join(rig.memory.read(gpa, length) for gpa, length, _ in pieces)
                assert got == model[model_range]
        assert rig.worker.bounced
        assert rig.request(FLUSH) == (OK, 1)
    finally:
        rig.close()
    assert image.read_bytes() == model


def test_what_is_aligned_is_not_moved_between(engine, image, rule):
    rig = direct_rig(engine, image, rule)
    try:
        assert rig.request(IN, 8, length=8192) == (OK, 8193)
        assert rig.request(OUT, 16, data=os.urandom(4096)) == (OK, 1)
        assert rig.worker.counters()["bounced"] == 0
    finally:
        rig.close()


def test_parts_of_a_block_from_two_queues(engine, image):
    """Each queue writes its own sectors of the same blocks: none is lost."""
    rigs = [direct_rig(engine, image, (512, 4096)) for _ in range(2)]
    model = bytearray(image.read_bytes())

    def work(number: int) -> None:
        for turn in range(150):
            sector = (turn % 5) * 8 + number + 2 * (turn % 4)
            data = bytes([number + 1, turn]) * 256
            assert rigs[number].request(OUT, sector, data=data) == (OK, 1)
            model[sector * 512 : sector * 512 + 512] = data

    threads = [threading.Thread(target=work, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for rig in rigs:
        rig.close()
    assert image.read_bytes() == model


@pytest.mark.parametrize("unmap", [0, 1])
@pytest.mark.parametrize(("first", "count"), [(8, 16), (3, 1), (1, 3001), (0, SECTORS)])
def test_zeroes(engine, image, rule, first, count, unmap):
    rig = direct_rig(engine, image, rule)
    before = image.read_bytes()
    try:
        data = struct.pack("<QII", first, count, unmap)
        assert rig.request(WRITE_ZEROES, data=data) == (OK, 1)
    finally:
        rig.close()
    end = (first + count) * 512
    assert image.read_bytes() == before[: first * 512] + bytes(count * 512) + before[end:]


def test_a_shortened_file_fails_alone(engine, image):
    rig = direct_rig(engine, image, (4096, 4096))
    try:
        os.truncate(image, 4096)
        assert rig.request(IN, 1, length=512)[0] == OK
        assert rig.request(IN, 9, length=512)[0] == IOERR
        assert rig.request(IN, 7, length=1024)[0] == IOERR
        assert rig.request(IN, 0, length=512)[0] == OK
    finally:
        rig.close()


@given(st.integers(-5, 1 << 32), st.integers(-5, 1 << 32))
@settings(max_examples=50)
def test_alignments_that_cannot_be(memory, file):
    with pytest.raises((ValueError, OverflowError)):
        rig_less().set_direct(memory | 3, file)
    with pytest.raises((ValueError, OverflowError)):
        rig_less().set_direct(512, file | 65536)


def rig_less() -> BlkWorker:
    from vmm._native.memory.guestmem import GuestMemory
    from vmm._native.virtio.virtqueue import VirtQueue

    memory = GuestMemory([(0, 1 << 20)])
    queue = VirtQueue(memory, 4, 0x1000, 0x2000, 0x3000)
    return BlkWorker(queue, -1, 8, False, False, b"", -1, -1, -1)


def opened(path, read_only: bool = False) -> Disk:
    return Disk.of(ImageSpec(str(path), direct=True), read_only)


@pytest.mark.parametrize("told", [None, (512, 512), (4, 4096)])
def test_a_disk_opened_for_it(image, told, monkeypatch):
    monkeypatch.setattr(direct, "dio_alignment", lambda fd: told)
    disk = opened(image)
    try:
        assert fcntl.fcntl(disk.fd, fcntl.F_GETFL) & os.O_DIRECT
        assert disk.status()["direct"] is True
        assert disk.logical_block == 512
        memory, file = disk.alignment
        if told is not None:
            assert (memory, file) == told
            assert disk.physical_block == file
        assert 1 <= memory <= 4096
        assert 512 <= file <= 4096
    finally:
        disk.close()


def test_what_this_kernel_tells_is_true(image):
    disk = opened(image)
    memory, file = disk.alignment
    disk.close()
    rig = direct_rig(BlkWorker, image, (memory, file))
    try:
        assert rig.request(IN, 0, length=file) == (OK, file + 1)
        assert not rig.worker.bounced
    finally:
        rig.close()


@pytest.mark.parametrize(
    ("told", "words"),
    [((0, 0), "does not do it for this file"), ((512, 65536), "blocks of 65536 bytes")],
)
def test_a_file_that_cannot(image, told, words, monkeypatch):
    monkeypatch.setattr(direct, "dio_alignment", lambda fd: told)
    with pytest.raises(HostError, match=words) as caught:
        opened(image)
    assert "leave direct=on out" in str(caught.value.remedy)


def test_a_file_system_without():
    fd = os.open("/proc/self/stat", os.O_RDONLY)
    try:
        with pytest.raises(HostError, match="no direct I/O on /image: its file system has none"):
            direct.turn_on("/image", fd, 512)
        assert not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT
    finally:
        os.close(fd)


def test_a_size_between_two_blocks(image, monkeypatch):
    monkeypatch.setattr(direct, "dio_alignment", lambda fd: (4, 4096))
    os.truncate(image, 4096 * 3 + 512)
    with pytest.raises(HostError, match=r"12800 is no multiple of 4096") as caught:
        opened(image)
    assert f"truncate -s %4096 {image}" in str(caught.value.remedy)


def test_off_is_the_page_cache(image):
    for image_spec in (ImageSpec(str(image)), ImageSpec(str(image), direct=False)):
        disk = Disk.of(image_spec, False)
        assert not fcntl.fcntl(disk.fd, fcntl.F_GETFL) & os.O_DIRECT
        assert disk.status()["direct"] is False
        disk.close()
