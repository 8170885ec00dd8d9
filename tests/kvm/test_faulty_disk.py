"""A disk that fails by rules, below both engines: what fails is told, the rest goes on."""

from __future__ import annotations

import errno
import os
import random
import struct
import time

import pytest

from tests.support.faulty_disk import FLUSH as FLUSHES
from tests.support.faulty_disk import READ, SECTOR, WRITE, ZERO, FaultyDisk, needs_fuse
from tests.support.speed import patience
from tests.unit.native.test_block_worker import (
    DATA_GPA,
    ENGINES,
    FLUSH,
    HEADER_GPA,
    IN,
    IOERR,
    OK,
    OUT,
    SECTORS,
    STATUS_GPA,
    WRITE_ZEROES,
    Rig,
)
from vmm._native.disk.blkpump import BlkWorker, Flushed

pytestmark = needs_fuse
SIZE = SECTORS * SECTOR
STEP = 8
BATCH = 4


@pytest.fixture(params=ENGINES, ids=lambda e: e.engine)
def engine(request):
    return request.param


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with FaultyDisk(tmp_path_factory.mktemp("disk"), SIZE) as disk:
        yield disk


@pytest.fixture
def disk(server):
    server.begin(os.urandom(SIZE))
    return server


@pytest.fixture
def rig(engine, disk):
    rig = Rig(engine, disk.path)
    yield rig
    rig.close()


def at_once(rig: Rig, kind: int, count: int, first: int = 0) -> list[int]:
    """So many requests of STEP sectors behind each other; the status of each."""
    for n in range(count):
        header = rig.header(kind, first + n * STEP, at=HEADER_GPA + 16 * n)
        data = (DATA_GPA + n * STEP * SECTOR, STEP * SECTOR, kind == IN)
        rig.driver.add([header, data, (STATUS_GPA + n, 1, True)])
    rig.ring()
    for _ in range(count):
        rig.wait()
    return list(rig.memory.read(STATUS_GPA, count))


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.ENOMEM, errno.ETIMEDOUT])
@pytest.mark.parametrize(("kind", "operation"), [(IN, READ), (OUT, WRITE)])
def test_one_of_many_fails_alone(rig, disk, kind, operation, code):
    before = bytes(disk.seen)
    new = os.urandom(BATCH * STEP * SECTOR)
    rig.memory.write(DATA_GPA, new if kind == OUT else bytes(len(new)))
    disk.rule(operation, code, sectors=range(2 * STEP + 3, 2 * STEP + 4))
    assert at_once(rig, kind, BATCH) == [OK, OK, IOERR, OK]
    bad = slice(2 * STEP * SECTOR, 3 * STEP * SECTOR)
    want, got = bytearray(new), bytearray(disk.seen[: len(new)])
    if kind == IN:
        want, got = bytearray(before[: len(new)]), bytearray(rig.memory.read(DATA_GPA, len(new)))
    want[bad] = got[bad] = bytes(STEP * SECTOR)
    assert got == want
    assert rig.worker.counters()["errors"] == 1
    rig.memory.write(DATA_GPA, new)
    assert at_once(rig, kind, BATCH) == [OK] * BATCH
    assert rig.request(FLUSH) == (OK, 1)


def test_a_torn_write_is_not_acknowledged(rig, disk):
    new = b"n" * STEP * SECTOR
    rule = disk.rule(WRITE, errno.EIO, torn=1300)
    assert rig.request(OUT, 0, data=new) == (IOERR, 1)
    assert rule.happened == 1
    assert disk.seen[:1300] == new[:1300]
    assert rig.request(OUT, 0, data=new) == (OK, 1)
    assert rig.request(FLUSH) == (OK, 1)
    assert disk.stable[: len(new)] == new


@pytest.mark.parametrize("short", [1, 512, 1000, 4095])
def test_short_reads_are_gone_on_with(rig, disk, short):
    rule = disk.rule(READ, times=3, short=short)
    assert rig.request(IN, 5, length=STEP * SECTOR) == (OK, STEP * SECTOR + 1)
    assert rule.happened == 3 or short == 4095
    assert rig.memory.read(DATA_GPA, STEP * SECTOR) == disk.seen[5 * SECTOR : (5 + STEP) * SECTOR]


@pytest.mark.parametrize("short", [1, 512, 1000, 4095])
def test_short_writes_are_gone_on_with_or_told(rig, disk, short):
    """io_uring of some kernels makes EIO of a short write, and that is told; a part is never OK."""
    data = os.urandom(STEP * SECTOR)
    disk.rule(WRITE, times=3, short=short)
    status, _ = rig.request(OUT, 5, data=data)
    assert status == OK or rig.worker.engine == "io_uring"
    assert status == IOERR or disk.seen[5 * SECTOR : (5 + STEP) * SECTOR] == data
    disk.heal()
    assert rig.request(OUT, 5, data=data) == (OK, 1)
    assert disk.seen[5 * SECTOR : (5 + STEP) * SECTOR] == data


@pytest.mark.parametrize(("kind", "operation"), [(IN, READ), (OUT, WRITE)])
def test_a_file_that_moves_nothing_is_an_error(rig, disk, kind, operation):
    rule = disk.rule(operation, times=None, short=0)
    words = {"length": 4096} if kind == IN else {"data": bytes(4096)}
    assert rig.request(kind, 0, **words)[0] == IOERR
    assert rule.happened < 5
    disk.heal()
    assert rig.request(kind, 0, **words)[0] == OK


def not_now(rig: Rig) -> int:
    """EAGAIN is io_uring's own affair: its kernel side does not tell, and tries again for ever."""
    return errno.EINTR if rig.worker.engine == "io_uring" else errno.EAGAIN


def test_try_again_is_tried_again(rig, disk):
    rule = disk.rule(READ, not_now(rig), times=20)
    assert rig.request(IN, 0, length=4096) == (OK, 4097)
    assert rule.happened == 20
    assert rig.memory.read(DATA_GPA, 4096) == disk.seen[:4096]


@pytest.mark.parametrize(("kind", "operation"), [(IN, READ), (FLUSH, FLUSHES)])
def test_try_again_for_ever_is_an_error_and_costs_little(rig, disk, kind, operation):
    rule = disk.rule(operation, not_now(rig), times=None)
    words = {"length": 4096} if kind == IN else {}
    used = time.process_time()
    assert rig.request(kind, 0, **words)[0] == IOERR
    assert time.process_time() - used < patience(1)
    assert 900 < rule.happened < 1100
    disk.heal()
    assert rig.request(IN, 0, length=512)[0] == OK


def test_a_worker_ends_over_a_file_that_says_try_again(engine, disk):
    rig = Rig(engine, disk.path)
    rule = disk.rule(READ, not_now(rig), times=None)
    rig.driver.add([rig.header(IN), (DATA_GPA, 4096, True), (STATUS_GPA, 1, True)])
    rig.ring()
    deadline = time.monotonic() + patience(5)
    while rule.happened < 3:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    began = time.monotonic()
    rig.close()
    assert time.monotonic() - began < patience(0.5)


def test_a_slow_request_keeps_no_other_from_its_answer(rig, disk):
    disk.rule(READ, sectors=range(1), seconds=0.5)
    began = time.monotonic()
    for n in range(BATCH):
        header = rig.header(IN, n * STEP, at=HEADER_GPA + 16 * n)
        rig.driver.add([header, (DATA_GPA + n * 4096, 4096, True), (STATUS_GPA + n, 1, True)])
    slow = min(rig.driver.chains)
    rig.ring()
    heads = [rig.wait()[0] for _ in range(BATCH)]
    assert time.monotonic() - began >= 0.5
    # The other engine does one after the other.
    assert heads[-1 if rig.worker.engine == "io_uring" else 0] == slow
    assert rig.memory.read(STATUS_GPA, BATCH) == bytes(BATCH)


def test_a_flush_that_failed_makes_every_later_one_fail(engine, disk):
    """Else the second would say that all is on the disk, as the kernel does, and it is lost."""
    rig = Rig(engine, disk.path)
    again = Rig(engine, disk.path)
    try:
        again.worker.flushed = rig.worker.flushed  # as two queues of a disk
        assert rig.request(FLUSH)[0] == OK
        rule = disk.rule(FLUSHES, errno.EIO)
        assert rig.request(OUT, 0, data=b"l" * 512)[0] == OK
        assert rig.request(FLUSH)[0] == IOERR
        assert disk.stable[:512] != b"l" * 512
        assert rule.happened == 1
        assert [each.request(FLUSH)[0] for each in (rig, again, rig)] == [IOERR] * 3
        assert rig.request(OUT, 8, data=b"w" * 512)[0] == OK
        assert rig.request(IN, 8, length=512)[0] == OK
        again.worker.writeback = 0
        assert again.request(OUT, 9, data=b"x" * 512)[0] == IOERR
    finally:
        rig.close()
        again.close()


def test_the_others_flushes_know_nothing_of_it(engine, disk):
    rig = Rig(engine, disk.path)
    try:
        rig.worker.flushed = Flushed()
        rig.worker.flushed.failed = True
        assert rig.request(FLUSH)[0] == IOERR
        rig.worker.flushed = Flushed()
        assert rig.request(FLUSH)[0] == OK
    finally:
        rig.close()


def test_a_direct_disk_may_flush_again(disk):
    """Nothing of it is in a cache that forgets."""
    rig = Rig(BlkWorker, disk.path)
    try:
        rig.worker.set_direct(512, 512)
        disk.rule(FLUSHES, errno.EIO)
        assert [rig.request(FLUSH)[0] for _ in range(3)] == [IOERR, OK, OK]
    finally:
        rig.close()


def test_written_through_means_flushed_or_failed(rig, disk):
    rig.worker.writeback = 0
    assert rig.request(OUT, 0, data=b"a" * 512)[0] == OK
    assert disk.stable[:512] == b"a" * 512
    disk.rule(FLUSHES, errno.ENOSPC)
    assert rig.request(OUT, 0, data=b"b" * 512)[0] == IOERR


@pytest.mark.parametrize("unmap", [0, 1])
def test_zeroes_by_another_way_or_an_error(rig, disk, unmap):
    span = struct.pack("<QII", 8, 16, unmap)
    disk.rule(ZERO, errno.EIO, times=2)
    assert rig.request(WRITE_ZEROES, data=span)[0] == OK
    assert disk.seen[8 * SECTOR : 24 * SECTOR] == bytes(16 * SECTOR)
    disk.rule(ZERO, errno.ENOSPC, times=None)
    disk.rule(WRITE, errno.ENOSPC, times=None)
    assert rig.request(WRITE_ZEROES, data=span)[0] == IOERR


def random_rule(chance: random.Random, disk: FaultyDisk) -> None:
    operation = chance.choice([READ, WRITE, WRITE, ZERO])
    words = chance.choice(
        [
            {},
            {"short": chance.randrange(4096)},
            {"torn": chance.randrange(4096)},
            {"seconds": 0.002},
        ]
    )
    quiet = "short" in words or "seconds" in words
    code = 0 if quiet else chance.choice([errno.EIO, errno.ENOSPC, errno.EAGAIN])
    start = chance.randrange(64)
    disk.rule(operation, code, sectors=range(start, start + 8), times=chance.randint(1, 2), **words)


@pytest.mark.parametrize(
    "seed", [0, 1, *[pytest.param(n, marks=pytest.mark.full) for n in range(2, 40)]]
)
def test_random_faults_against_a_model(rig, disk, seed):
    """What was answered OK is there; a sector of a failed write is old or new, or mixed of both."""
    chance = random.Random(seed)
    sectors = range(0, 64 * SECTOR, SECTOR)
    model: list[bytes | None] = [bytes(disk.seen[at : at + SECTOR]) for at in sectors]
    failed = 0
    for _ in range(200):
        if chance.random() < 0.3:
            random_rule(chance, disk)
        first = chance.randrange(60)
        count = chance.randint(1, min(8, 64 - first))
        kind = chance.choice([IN, OUT, OUT, WRITE_ZEROES])
        data = bytes(count * SECTOR) if kind == WRITE_ZEROES else chance.randbytes(count * SECTOR)
        if kind == IN:
            status, _ = rig.request(IN, first, length=count * SECTOR)
            data = rig.memory.read(DATA_GPA, count * SECTOR)
        elif kind == OUT:
            status, _ = rig.request(OUT, first, data=data)
        else:
            status, _ = rig.request(WRITE_ZEROES, data=struct.pack("<QII", first, count, 0))
        assert status in (OK, IOERR)
        failed += status == IOERR
        for n in range(count):
            piece = data[n * SECTOR : (n + 1) * SECTOR]
            if kind != IN:
                model[first + n] = piece if status == OK else None
            elif status == OK and model[first + n] is not None:
                assert piece == model[first + n]
    assert failed
    disk.heal()
    assert rig.request(FLUSH)[0] == OK
    for n, want in enumerate(model):
        assert want is None or disk.stable[n * SECTOR : (n + 1) * SECTOR] == want
