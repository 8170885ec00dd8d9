"""Chains of a script's queue: copied in pieces, bounded, and nothing after a reset."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.virtq_driver import DriverQueue
from vmm._native.memory.guestmem import GuestMemory
from vmm._native.virtio.chain import BrokenQueue, ChainQueue
from vmm._native.virtio.virtqueue import VirtQueue

PAGE = 4096
RAM = 64 * PAGE
SIZE = 8
DATA = 0x20000


@pytest.fixture
def memory():
    ram = GuestMemory([(0, RAM)])
    yield ram
    ram.close()


def rig(memory, call_fd=-1):
    driver = DriverQueue(memory, PAGE, SIZE)
    ring = VirtQueue(memory, SIZE, *driver.areas())
    return driver, ChainQueue(ring, 0, call_fd)


@given(
    parts=st.lists(st.tuples(st.integers(1, 300), st.booleans()), min_size=1, max_size=SIZE),
    steps=st.lists(st.integers(0, 700), max_size=12),
)
@settings(max_examples=60, deadline=None)
def test_reads_and_writes_cross_segments(parts, steps):
    memory = GuestMemory([(0, RAM)])
    driver, queue = rig(memory)
    parts = sorted(parts, key=lambda part: part[1])
    sent = bytes(n * 7 & 0xFF for n in range(RAM - DATA))
    memory.write(DATA, sent)
    buffers, place = [], DATA
    for length, writable in parts:
        buffers.append((place, length, writable))
        place += length + 3
    driver.add(buffers)
    chain = queue.take()
    out = b"".join(memory.read(g, n) for g, n, w in buffers if not w)
    room = sum(n for _, n, w in buffers if w)
    assert (chain.readable, chain.writable) == (len(out), room)
    got = b"".join(chain.read(n) for n in steps) + chain.read()
    assert got == out
    data = bytes(255 - n & 0xFF for n in range(sum(steps) + room))
    written = 0
    for n in [*steps, room]:
        written += chain.write(data[written : written + n])
    assert written == room == chain.written
    assert b"".join(memory.read(g, n) for g, n, w in buffers if w) == data[:room]
    chain.done()
    assert driver.take_used() == (0, room)
    # What lies between the buffers is untouched.
    for gpa, length, _ in buffers:
        assert memory.read(gpa + length, 3) == sent[gpa + length - DATA :][:3]
    memory.close()


def test_an_interrupt_for_each_answer_that_is_wanted(memory):
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    driver, queue = rig(memory, fd)
    for _ in range(2):
        driver.add([(DATA, 4, True)])
        queue.take().done()
    assert os.eventfd_read(fd) == 2
    driver.set_avail_flags(1)
    driver.add([(DATA, 4, True)])
    queue.take().done()
    with pytest.raises(BlockingIOError):
        os.eventfd_read(fd)
    os.close(fd)


def test_a_stopped_queue_gives_and_takes_nothing(memory):
    driver, queue = rig(memory)
    driver.add([(DATA, 4, False), (DATA, 4, True)])
    chain = queue.take()
    queue.stop()
    assert not queue.alive
    assert queue.take() is None
    assert not queue.rearm()
    assert (chain.read(), chain.write(b"1234"), chain.readable, chain.writable) == (b"", 0, 0, 0)
    chain.done()
    assert driver.used_idx() == 0


def test_closed_memory_is_not_touched(memory):
    driver, queue = rig(memory)
    driver.add([(DATA, 4, False), (DATA, 4, True)])
    chain = queue.take()
    memory.close()
    assert (chain.read(), chain.write(b"1234")) == (b"", 0)
    assert queue.take() is None
    chain.done()


def test_a_chain_longer_than_any_request_breaks_the_queue():
    memory = GuestMemory([(0, 16 << 20)])
    driver, queue = rig(memory)
    driver.add([(0, 16 << 20, False)] * 5)
    with pytest.raises(BrokenQueue, match="more than 67108864 bytes"):
        queue.take()
    assert not queue.alive
    memory.close()


def test_more_chains_than_the_queue_has_break_it(memory):
    driver, queue = rig(memory)
    driver.add([(DATA, 4, True)])
    kept = [queue.take()]
    for _ in range(SIZE - 1):
        driver.publish(0)
        kept.append(queue.take())
    driver.publish(0)
    with pytest.raises(BrokenQueue, match="more chains than the queue has"):
        queue.take()
    assert queue.in_use == len(kept) == SIZE


def test_lengths_that_are_none(memory):
    driver, queue = rig(memory)
    driver.add([(DATA, 4, False), (DATA, 4, True)])
    chain = queue.take()
    with pytest.raises(ValueError, match="-1 bytes to read"):
        chain.read(-1)
    with pytest.raises(ValueError, match="4 bytes of room"):
        chain.done(5)
    assert chain.read(1 << 80) == memory.read(DATA, 4)
    chain.done(4)
    assert driver.take_used() == (0, 4)
