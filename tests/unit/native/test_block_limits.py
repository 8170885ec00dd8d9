"""Limits of a disk: what it does in a time, who waits, and what ends the waiting."""

from __future__ import annotations

import time

import pytest

from tests.support.speed import patience
from tests.unit.native.test_block_worker import (
    DATA_GPA,
    FLUSH,
    GET_ID,
    IN,
    OK,
    STATUS_GPA,
    Rig,
)
from tests.unit.native.test_worker_pause import ENGINES, overlay_engine, wait_for
from vmm._native.disk.limits import Limits

SECOND = 1000


@pytest.fixture(params=[*ENGINES, overlay_engine], ids=lambda e: e.engine)
def engine(request):
    return request.param


def limited(engine, path, requests=None, bytes_=None, *, limits=None, event_idx=True) -> Rig:
    rig = Rig(engine, path, size=128, event_idx=event_idx)
    rig.worker.stop()
    (limits or Limits(requests, bytes_)).govern(rig.worker)
    rig.worker.start("disk-test")
    return rig


def add_many(rig: Rig, count: int, length: int = 512, kind: int = IN) -> None:
    for number in range(count):
        head = rig.header(kind, number % 64, at=0x130000 + 16 * number)
        rig.driver.add([head, (DATA_GPA, length, True), (STATUS_GPA, 1, True)])
    rig.ring()


def seconds_for(rig: Rig, count: int, length: int = 512, kind: int = IN) -> float:
    began = time.monotonic()
    add_many(rig, count, length, kind)
    wait_for(lambda: rig.driver.used_idx() == rig.driver.avail_idx)
    while rig.driver.take_used():
        pass
    return time.monotonic() - began


@pytest.mark.parametrize("event_idx", [False, True])
def test_requests_in_a_second(engine, image, event_idx):
    rig = limited(engine, image, (20, 200, 0), event_idx=event_idx)  # 100 a second, 20 at once
    try:
        seconds_for(rig, 15)
        assert rig.worker.counters()["throttled"] == 0
        assert seconds_for(rig, 40) >= 0.15
        assert rig.worker.counters()["throttled"]
        assert rig.worker.counters()["errors"] == 0
    finally:
        rig.close()


@pytest.mark.parametrize("kind", [GET_ID, FLUSH, 99])
def test_each_kind_of_request_counts(engine, image, kind):
    rig = limited(engine, image, (10, 100, 0))
    try:
        assert seconds_for(rig, 30, 20, kind) >= 0.15
    finally:
        rig.close()


def test_bytes_in_a_second(engine, image):
    rig = limited(engine, image, None, (65536, 100, 0))
    try:
        assert seconds_for(rig, 40, 8192) >= 0.3  # 327,680 bytes of which 65,536 at once
        assert rig.request(IN, 0, length=512)[0] == OK
    finally:
        rig.close()


def test_a_request_of_more_than_the_bucket_holds_is_served_and_paid_for(engine, image):
    rig = limited(engine, image, None, (4096, 20, 0))
    try:
        seconds_for(rig, 1, 65536)
        assert rig.worker.counters()["throttled"] == 0
        assert seconds_for(rig, 1, 512) >= 0.2  # 60 KiB of debt at 200 KiB/s
    finally:
        rig.close()


def test_what_is_allowed_once(engine, image):
    rig = limited(engine, image, (1, SECOND, 39))
    try:
        seconds_for(rig, 40)
        assert rig.worker.counters()["throttled"] == 0
        assert seconds_for(rig, 2) >= 0.8
    finally:
        rig.close()


def test_two_queues_share_it(engine, image):
    limits = Limits((20, 100, 0), None)
    rigs = [limited(engine, image, limits=limits) for _ in range(2)]
    began = time.monotonic()
    for rig in rigs:
        add_many(rig, 30)
    for rig in rigs:
        wait_for(lambda rig=rig: rig.driver.used_idx() == rig.driver.avail_idx)
    assert time.monotonic() - began >= 0.18
    for rig in rigs:
        rig.close()


@pytest.mark.parametrize("end", ["stop", "pause"])
def test_the_end_does_not_wait_for_it(engine, image, end):
    rig = limited(engine, image, (1, 3_600_000, 0))
    try:
        add_many(rig, 10)
        wait_for(lambda: rig.driver.used_idx() == 1)
        time.sleep(0.05)
        began = time.monotonic()
        getattr(rig.worker, end)()
        assert time.monotonic() - began < patience(0.5)
        available, used, _ = rig.queue.positions()
        assert available == used == 1  # nothing was taken and not answered
        Limits(None, None).govern(rig.worker)
        rig.worker.start("disk-test")
        wait_for(lambda: rig.driver.used_idx() == 10)
    finally:
        rig.close()


def test_who_waits_sleeps(engine, image):
    """Timers wake it, at most one in a millisecond; nothing spins."""
    rig = limited(engine, image, (1, SECOND, 0))
    try:
        add_many(rig, 10)
        wait_for(lambda: rig.driver.used_idx() == 1)
        used = time.process_time()
        time.sleep(0.4)
        assert time.process_time() - used < 0.1
        assert rig.worker.counters()["throttled"] <= 4
    finally:
        rig.close()


@pytest.mark.parametrize("bad", [(0, 1, 0), (1, 0, 0), (1, 1, -1), (-5, 1000, 0)])
def test_limits_that_cannot_be(bad):
    with pytest.raises(ValueError, match="a limit of"):
        Limits(bad, None)
    with pytest.raises(ValueError, match="a limit of"):
        Limits(None, bad)
