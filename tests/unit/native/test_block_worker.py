from __future__ import annotations

import os
import resource
import select
import signal
import struct
import time

import pytest

from devices.virtio.block import worker_class
from tests.support.speed import patience
from tests.support.virtq_driver import DriverQueue
from vmm._native.disk.blkpump import BlkWorker
from vmm._native.memory.guestmem import GuestMemory
from vmm._native.virtio.virtqueue import VirtQueue

IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES = 0, 1, 4, 8, 11, 13
OK, IOERR, UNSUPP = 0, 1, 2
SECTORS = 4096
HEADER_GPA, STATUS_GPA, DATA_GPA = 0x100000, 0x110000, 0x120000
ENGINES = [BlkWorker]
if worker_class() is not BlkWorker:
    ENGINES.append(worker_class())


class Rig:
    """A worker on a real file, and the driver that talks to it."""

    def __init__(
        self,
        engine,
        path,
        *,
        read_only=False,
        size=16,
        sectors=SECTORS,
        event_idx=False,
        block_device=False,
    ):
        self.memory = GuestMemory([(0, 4 << 20)])
        self.driver = DriverQueue(self.memory, 0x1000, size)
        self.fd = os.open(path, os.O_RDONLY if read_only else os.O_RDWR)
        self.kick = os.eventfd(0)
        self.call = os.eventfd(0)
        self.config = os.eventfd(0, os.EFD_NONBLOCK)
        self.queue = VirtQueue(
            self.memory, size, *self.driver.areas(), event_idx=event_idx, indirect=True
        )
        self.worker = engine(
            self.queue, self.fd, sectors, read_only, block_device, b"serial-42", self.kick,
            self.call, self.config,
        )  # fmt: skip
        self.worker.start("disk-test")

    def header(self, kind, sector=0, at=HEADER_GPA):
        self.memory.write(at, struct.pack("<IIQ", kind, 0, sector))
        return at, 16, False

    def ring(self):
        os.eventfd_write(self.kick, 1)

    def wait(self):
        poll = select.poll()
        poll.register(self.call, select.POLLIN)
        deadline = time.monotonic() + patience(5)
        while True:
            used = self.driver.take_used()
            if used:
                return used
            assert time.monotonic() < deadline, "no completion"
            if poll.poll(100):
                os.eventfd_read(self.call)

    def request(self, kind, sector=0, data=None, length=0):
        """One request as Linux sends it; (status, used length)."""
        buffers = [self.header(kind, sector)]
        if data is not None:
            self.memory.write(DATA_GPA, data)
            buffers.append((DATA_GPA, len(data), False))
        elif length:
            buffers.append((DATA_GPA, length, True))
        self.memory.write(STATUS_GPA, b"\xff")
        self.driver.add([*buffers, (STATUS_GPA, 1, True)])
        self.ring()
        _, used = self.wait()
        return self.memory.read(STATUS_GPA, 1)[0], used

    def close(self):
        self.worker.stop()
        for fd in (self.fd, self.kick, self.call, self.config):
            os.close(fd)
        del self.worker, self.queue
        self.memory.close()


@pytest.fixture(params=ENGINES, ids=lambda e: e.engine)
def engine(request):
    return request.param


@pytest.fixture
def rig(engine, image):
    rig = Rig(engine, image)
    yield rig
    rig.close()


def test_read(rig, image):
    assert rig.request(IN, 7, length=8192) == (OK, 8193)
    assert rig.memory.read(DATA_GPA, 8192) == image.read_bytes()[7 * 512 : 7 * 512 + 8192]


def test_write_and_flush(rig, image):
    data = os.urandom(4096)
    assert rig.request(OUT, 100, data=data) == (OK, 1)
    assert rig.request(FLUSH) == (OK, 1)
    assert image.read_bytes()[100 * 512 : 100 * 512 + 4096] == data


def test_scattered_segments(rig, image):
    rig.header(IN, 3)
    pieces = [(DATA_GPA + n * 0x1001, 1 + n * 13, True) for n in range(8)]
    total = sum(length for _, length, _ in pieces)
    pieces.append((DATA_GPA + 0x20000, 1024 - total, True))
    rig.driver.add(
        [(HEADER_GPA, 5, False), (HEADER_GPA + 5, 11, False), *pieces, (STATUS_GPA, 1, True)]
    )
    rig.ring()
    assert rig.wait()[1] == 1025
    got = b"".join(rig.memory.read(gpa, length) for gpa, length, _ in pieces)
    assert got == image.read_bytes()[3 * 512 : 3 * 512 + 1024]


def test_status_in_the_data_descriptor(rig, image):
    rig.header(IN, 1)
    rig.driver.add([(HEADER_GPA, 16, False), (DATA_GPA, 513, True)])
    rig.ring()
    assert rig.wait()[1] == 513
    assert rig.memory.read(DATA_GPA, 513) == image.read_bytes()[512:1024] + b"\0"


def test_indirect(rig, image):
    rig.header(IN, 2)
    rig.driver.add_indirect(
        0x8000, [(HEADER_GPA, 16, False), (DATA_GPA, 512, True), (STATUS_GPA, 1, True)]
    )
    rig.ring()
    rig.wait()
    assert rig.memory.read(DATA_GPA, 512) == image.read_bytes()[1024:1536]


def test_get_id(rig):
    assert rig.request(GET_ID, length=20) == (OK, 21)
    assert rig.memory.read(DATA_GPA, 20) == b"serial-42".ljust(20, b"\0")
    assert rig.request(GET_ID, length=19)[0] == IOERR


@pytest.mark.parametrize(
    ("kind", "flags", "status"),
    [(DISCARD, 0, OK), (DISCARD, 1, UNSUPP), (WRITE_ZEROES, 0, OK), (WRITE_ZEROES, 1, OK),
     (WRITE_ZEROES, 2, UNSUPP)],
)  # fmt: skip
def test_discard_and_write_zeroes(rig, image, kind, flags, status):
    before = image.read_bytes()
    assert rig.request(kind, data=struct.pack("<QII", 8, 16, flags)) == (status, 1)
    after = image.read_bytes()
    assert len(after) == len(before)
    if status == OK:
        assert after == before[: 8 * 512] + bytes(16 * 512) + before[24 * 512 :]
    else:
        assert after == before


@pytest.mark.parametrize(
    ("kind", "sector", "amount"),
    [(IN, SECTORS, 512), (IN, SECTORS - 1, 1024), (IN, (1 << 64) - 1, 512), (IN, 1 << 55, 512),
     (IN, 0, 511), (OUT, SECTORS, 512), (OUT, 0, 100), (DISCARD, SECTORS, 1),
     (DISCARD, 1, SECTORS)],
)  # fmt: skip
def test_requests_outside_the_disk_fail_alone(rig, image, kind, sector, amount):
    before = image.read_bytes()
    if kind == IN:
        status, _ = rig.request(kind, sector, length=amount)
    elif kind == OUT:
        status, _ = rig.request(kind, sector, data=b"x" * amount)
    else:
        status, _ = rig.request(kind, data=struct.pack("<QII", sector, amount, 0))
    assert status == IOERR
    assert image.read_bytes() == before
    assert rig.request(IN, 0, length=512) == (OK, 513)


def test_unknown_requests_are_unsupported(rig):
    assert rig.request(99, length=512)[0] == UNSUPP


def test_short_header_is_an_error(rig):
    rig.header(IN)
    rig.driver.add([(HEADER_GPA, 15, False), (STATUS_GPA, 1, True)])
    rig.ring()
    rig.wait()
    assert rig.memory.read(STATUS_GPA, 1)[0] == IOERR


def test_no_status_byte_is_survived(rig):
    rig.header(IN)
    rig.driver.add([(HEADER_GPA, 16, False)])
    rig.ring()
    assert rig.wait()[1] == 0
    assert rig.request(IN, 0, length=512) == (OK, 513)


def test_read_only(engine, image):
    rig = Rig(engine, image, read_only=True)
    before = image.read_bytes()
    assert rig.request(OUT, 0, data=bytes(512))[0] == IOERR
    assert rig.request(DISCARD, data=struct.pack("<QII", 0, 8, 0))[0] == IOERR
    assert rig.request(WRITE_ZEROES, data=struct.pack("<QII", 0, 8, 0))[0] == IOERR
    assert rig.request(FLUSH)[0] == OK
    assert rig.request(IN, 0, length=512)[0] == OK
    assert image.read_bytes() == before
    rig.close()


def test_a_shortened_file_fails_reads_only(rig, image):
    os.truncate(image, 1024)
    assert rig.request(IN, 0, length=1024)[0] == OK
    assert rig.request(IN, 1, length=1024)[0] == IOERR
    assert rig.request(IN, 0, length=512)[0] == OK


def test_a_full_disk_fails_writes_only(engine, tmp_path):
    path = tmp_path / "sparse.img"
    path.write_bytes(bytes(4096))
    old_handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    old_limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, old_limit[1]))
    rig = Rig(engine, path)
    try:
        assert rig.request(OUT, 64, data=b"x" * 512)[0] == IOERR
        assert rig.request(OUT, 1, data=b"y" * 512)[0] == OK
        assert rig.worker.counters()["errors"] == 1
    finally:
        rig.close()
        resource.setrlimit(resource.RLIMIT_FSIZE, old_limit)
        signal.signal(signal.SIGXFSZ, old_handler)


def test_write_through(rig, image):
    rig.worker.writeback = 0
    assert rig.request(OUT, 0, data=b"z" * 512) == (OK, 1)
    assert image.read_bytes()[:512] == b"z" * 512


def test_many_requests_wrap_the_indices(engine, image):
    rig = Rig(engine, image, size=4)
    for n in range(66000 // 4):
        assert rig.request(IN, n % SECTORS, length=512)[1] == 513
    rig.close()


def test_a_queue_full_of_requests(engine, image):
    rig = Rig(engine, image, size=128, event_idx=True)
    for n in range(40):
        header = rig.header(IN, n, at=HEADER_GPA + 16 * n)
        rig.driver.add([header, (DATA_GPA + 512 * n, 512, True), (STATUS_GPA + n, 1, True)])
    rig.ring()
    for _ in range(40):
        rig.wait()
    assert rig.memory.read(DATA_GPA, 40 * 512) == image.read_bytes()[: 40 * 512]
    rig.close()


@pytest.mark.parametrize(
    "corrupt",
    [
        lambda d: d.publish(500),
        lambda d: d.set_avail_idx(d.avail_idx + 100),
        lambda d: (d.descriptor(0, 0x1000, 16, 1, 0), d.publish(0)),  # a loop
        lambda d: (d.descriptor(0, 1 << 40, 16, 0), d.publish(0)),
        lambda d: (d.descriptor(0, (4 << 20) - 8, 16, 0), d.publish(0)),
        lambda d: (d.descriptor(0, (1 << 64) - 8, 16, 0), d.publish(0)),
        lambda d: (d.descriptor(0, 0x1000, 16, 1, 77), d.publish(0)),
        lambda d: (d.descriptor(0, 0x8000, 8, 4), d.publish(0)),
        lambda d: (d.descriptor(0, 0x8000, 0, 4), d.publish(0)),
        lambda d: (d.descriptor(0, 0x8000, 0xFFFFFFF0, 4), d.publish(0)),
    ],
)  # fmt: skip
def test_a_broken_ring_stops_the_queue_and_says_so(rig, corrupt):
    corrupt(rig.driver)
    rig.ring()
    poll = select.poll()
    poll.register(rig.config, select.POLLIN)
    assert poll.poll(patience(5000)), "no configuration interrupt"
    assert rig.worker.broken < 0


def test_start_and_stop_again_and_again(engine, image):
    for _ in range(200):
        rig = Rig(engine, image)
        rig.driver.add([rig.header(IN), (DATA_GPA, 4096, True), (STATUS_GPA, 1, True)])
        rig.ring()
        rig.close()
