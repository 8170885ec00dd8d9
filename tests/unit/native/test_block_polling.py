"""Looking for work before a sleep: nothing is lost by it, and an idle disk sleeps."""

from __future__ import annotations

import os
import random
import struct
import time
from pathlib import Path

import pytest

from devices.virtio.block import Block
from devices.virtio.device import F_EVENT_IDX, QueueConfig
from tests.support.speed import patience
from tests.unit.native.test_block_worker import DATA_GPA, IN, OK, SECTORS, STATUS_GPA, Rig
from tests.unit.native.test_worker_pause import ENGINES, overlay_engine, wait_for
from vmm._native.memory.guestmem import GuestMemory
from vmm.host.disk import Disk

MIB = 1 << 20
NO_NOTIFY = 1


@pytest.fixture(params=[*ENGINES, overlay_engine], ids=lambda e: e.engine)
def engine(request):
    return request.param


def thread_named(name: str) -> Path:
    for task in Path("/proc/self/task").iterdir():
        if (task / "comm").read_text().strip() == name:
            return task
    raise AssertionError(f"no thread {name}")


def switches(task: Path) -> int:
    lines = (task / "status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)


def ring_if_wanted(rig: Rig, event_idx: bool, old: int) -> bool:
    """As a driver does it: the doorbell only where the device has asked for it (2.7.10)."""
    new = rig.driver.avail_idx
    if event_idx:
        wanted = (new - rig.driver.avail_event() - 1 & 0xFFFF) < (new - old & 0xFFFF)
    else:
        wanted = not rig.driver.used_flags() & NO_NOTIFY
    if wanted:
        rig.ring()
    return wanted


def ask(rig: Rig, sector: int) -> None:
    rig.driver.set_used_event(rig.driver.seen_used)
    assert rig.request(IN, sector, length=512)[0] == OK


@pytest.mark.parametrize("event_idx", [False, True])
def test_no_request_is_lost_between_look_and_sleep(engine, image, event_idx):
    rig = Rig(engine, image, size=16, event_idx=event_idx)
    rng = random.Random(2)
    try:
        for turn in range(4000):
            old = rig.driver.avail_idx
            head = rig.header(IN, turn % SECTORS)
            rig.driver.add([head, (DATA_GPA, 512, True), (STATUS_GPA, 1, True)])
            ring_if_wanted(rig, event_idx, old)
            deadline = time.monotonic() + patience(5)
            while rig.driver.used_idx() != rig.driver.avail_idx:
                assert time.monotonic() < deadline, f"request {turn} is not answered"
            rig.driver.take_used()
            # Around the time after which the device sleeps.
            end = time.perf_counter() + rng.random() * 120e-6
            while time.perf_counter() < end:
                pass
        assert rig.worker.counters()["polls"]
        assert rig.worker.counters()["reads"] == 4000
    finally:
        rig.close()


def test_an_idle_disk_does_not_wake(engine, image):
    rig = Rig(engine, image, event_idx=True)
    try:
        for turn in range(50):
            ask(rig, turn)
        task = thread_named("disk-test")
        time.sleep(0.05)
        before = switches(task), (task / "stat").read_text().split()[13:15]
        time.sleep(0.5)
        assert (switches(task), (task / "stat").read_text().split()[13:15]) == before
        assert rig.driver.avail_event() == rig.driver.avail_idx  # it listens for its doorbell
    finally:
        rig.close()


def test_doorbells_without_requests_make_nobody_look(engine, image):
    rig = Rig(engine, image, event_idx=True)
    try:
        ask(rig, 0)
        time.sleep(0.02)
        tries = rig.worker.counters()["polls"]
        for _ in range(50):
            rig.ring()
            time.sleep(0.001)
        assert rig.worker.counters()["polls"] <= tries + 1
    finally:
        rig.close()


def test_what_does_not_pay_is_left(engine, image):
    """A driver that always comes later: each try in vain doubles the waits until the next."""
    rig = Rig(engine, image, event_idx=True)
    try:
        for turn in range(200):
            ask(rig, turn)
            time.sleep(0.001)
        assert 1 <= rig.worker.counters()["polls"] <= 60
    finally:
        rig.close()


def test_it_can_be_switched_off(engine, image):
    rig = Rig(engine, image, event_idx=True)
    try:
        rig.worker.polling = False
        tries = rig.worker.counters()["polls"]
        for turn in range(100):
            ask(rig, turn)
        assert rig.worker.counters()["polls"] == tries
    finally:
        rig.close()


def test_an_index_that_jumps_while_it_looks_breaks_the_ring_alone(engine, image):
    rig = Rig(engine, image, event_idx=True)
    try:
        for turn in range(20):
            ask(rig, turn)
        rig.driver.set_avail_idx(rig.driver.avail_idx + 1000)
        rig.ring()
        wait_for(lambda: rig.worker.broken < 0)
        used = time.process_time()
        time.sleep(0.2)
        assert time.process_time() - used < 0.1
    finally:
        rig.close()


@pytest.mark.parametrize(("processors", "looks"), [({0}, False), ({0, 1}, True)])
def test_with_one_processor_nobody_looks(image, processors, looks, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: processors)
    memory = GuestMemory([(0, MIB)])
    disk = Disk.open(str(image), read_only=False)
    kick = os.eventfd(0)
    block = Block("disk0", memory, disk, 1)
    try:
        block.activate(F_EVENT_IDX, [QueueConfig(0, 16, 0x1000, 0x2000, 0x3000, kick, -1)], -1)
        assert block.workers()[0][1].polling is looks
    finally:
        block.close()
        disk.close()
        os.close(kick)
        memory.close()


def test_the_devices_own_words_written_over_while_it_looks(engine, image):
    """Its event index is in guest RAM: what the guest writes there costs the guest alone."""
    rig = Rig(engine, image, size=16, event_idx=True)
    try:
        for turn in range(500):
            event_gpa = rig.driver.device_gpa + 4 + 8 * 16
            rig.memory.write(event_gpa, struct.pack("<H", turn * 77 & 0xFFFF))
            ask(rig, turn)
    finally:
        rig.close()
