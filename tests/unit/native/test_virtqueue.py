"""The split ring against drivers that lie: every chain taken lies in RAM, or the ring is broken."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.virtq_driver import INDIRECT, NEXT, WRITE, DriverQueue
from vmm._native.memory.guestmem import GuestMemory
from vmm._native.virtio.virtqueue import VirtQueue

PAGE = 4096
RAM = 64 * PAGE
HOLE = 1 << 30
SIZE = 8
DATA = 0x20000


@pytest.fixture
def memory():
    """Two regions with a hole between them."""
    ram = GuestMemory([(0, RAM), (HOLE, RAM)])
    yield ram
    ram.close()


def queue_of(memory, driver: DriverQueue, **options) -> VirtQueue:
    return VirtQueue(memory, driver.size, *driver.areas(), **options)


def test_a_chain_comes_as_it_was_sent(memory):
    driver = DriverQueue(memory, PAGE, SIZE)
    queue = queue_of(memory, driver)
    memory.write(DATA, b"request")
    head = driver.add([(DATA, 7, False), (HOLE, 16, True)])
    taken, segments = queue.take()
    assert taken == head
    assert [(bytes(data), writable) for data, writable in segments] == [
        (b"request", False),
        (bytes(16), True),
    ]
    queue.give_back(taken, 16)
    assert driver.take_used() == (head, 16)
    assert queue.take() is None


@pytest.mark.parametrize(
    ("gpa", "length"),
    [
        (RAM - 8, 16), (RAM, 1), (HOLE - 1, 2), (HOLE + RAM - 1, 2), (HOLE + RAM, 1),
        ((1 << 64) - 8, 16), ((1 << 64) - 1, 1), (DATA, 0xFFFFFFFF), (1 << 52, 8),
    ],
)  # fmt: skip
def test_buffers_outside_ram_break_the_ring(memory, gpa, length):
    driver = DriverQueue(memory, PAGE, SIZE)
    queue = queue_of(memory, driver)
    driver.add([(gpa, length, True)])
    with pytest.raises(ValueError):
        queue.take()


@pytest.mark.parametrize(
    "build",
    [
        lambda d: (d.descriptor(0, DATA, 8, NEXT, 0), d.publish(0)),  # its own next
        lambda d: (
            d.descriptor(0, DATA, 8, NEXT, 1), d.descriptor(1, DATA, 8, NEXT, 0), d.publish(0),
        ),
        lambda d: (d.descriptor(0, DATA, 8, NEXT, SIZE), d.publish(0)),  # next outside the table
        lambda d: (d.descriptor(0, DATA, 8, NEXT, 0xFFFF), d.publish(0)),
        lambda d: d.publish(SIZE),  # a head outside the table
        lambda d: d.publish(0xFFFF),
        lambda d: d.set_avail_idx(SIZE + 1),  # more chains than descriptors
        lambda d: d.set_avail_idx(0x8000),
        lambda d: (d.descriptor(0, DATA, 8, INDIRECT), d.publish(0)),  # no multiple of 16
        lambda d: (d.descriptor(0, DATA, 0, INDIRECT), d.publish(0)),
        lambda d: (d.descriptor(0, RAM - 8, 16, INDIRECT), d.publish(0)),
        lambda d: (d.descriptor(0, DATA, 16, INDIRECT | NEXT, 1), d.publish(0)),
        lambda d: (
            d.memory.write(DATA, struct.pack("<QIHH", DATA, 16, INDIRECT, 0)),  # nested
            d.descriptor(0, DATA, 16, INDIRECT), d.publish(0),
        ),
        lambda d: (
            d.memory.write(DATA, struct.pack("<QIHH", DATA, 16, NEXT, 0)),  # loops in the table
            d.descriptor(0, DATA, 16, INDIRECT), d.publish(0),
        ),
        lambda d: (  # readable behind writable
            d.descriptor(0, DATA, 8, NEXT | WRITE, 1), d.descriptor(1, DATA, 8, 0), d.publish(0),
        ),
    ],
)  # fmt: skip
def test_lies_break_the_ring_for_good(memory, build):
    driver = DriverQueue(memory, PAGE, SIZE)
    queue = queue_of(memory, driver)
    build(driver)
    with pytest.raises(ValueError):
        queue.take()


def test_indirect_not_negotiated(memory):
    driver = DriverQueue(memory, PAGE, SIZE)
    queue = queue_of(memory, driver, indirect=False)
    driver.add_indirect(DATA, [(DATA, 8, False)])
    with pytest.raises(ValueError):
        queue.take()


@pytest.mark.parametrize("size", [0, 3, 32769, 65536])
def test_sizes_that_are_none(memory, size):
    with pytest.raises(ValueError):
        VirtQueue(memory, size, PAGE, 2 * PAGE, 3 * PAGE)


@pytest.mark.parametrize(
    "areas",
    [
        (PAGE + 8, 2 * PAGE, 3 * PAGE), (PAGE, 2 * PAGE + 1, 3 * PAGE),
        (PAGE, 2 * PAGE, 3 * PAGE + 2),
        (RAM - 16, PAGE, 2 * PAGE), (PAGE, RAM, 2 * PAGE), (PAGE, 2 * PAGE, HOLE - 4),
        (PAGE, 2 * PAGE, (1 << 64) - 4),
    ],
)  # fmt: skip
def test_areas_outside_ram_or_misaligned(memory, areas):
    with pytest.raises(ValueError):
        VirtQueue(memory, SIZE, *areas)


def test_indices_wrap(memory):
    driver = DriverQueue(memory, PAGE, 2)
    queue = queue_of(memory, driver)
    for _ in range(70000):
        driver.add([(DATA, 4, False)])
        queue.give_back(queue.take()[0], 0)
        driver.take_used()
    assert driver.used_idx() == 70000 & 0xFFFF


descriptors = st.tuples(
    st.one_of(
        st.integers(0, (1 << 64) - 1), st.integers(0, RAM + 64), st.integers(HOLE - 64, HOLE + RAM)
    ),
    st.one_of(st.integers(0, 0xFFFFFFFF), st.integers(0, 256)),
    st.integers(0, 7),
    st.one_of(st.integers(0, SIZE), st.integers(0, 0xFFFF)),
)


@settings(max_examples=300, deadline=None)
@given(table=st.lists(descriptors, min_size=SIZE, max_size=SIZE), head=st.integers(0, SIZE),
       avail=st.integers(0, SIZE + 1), tables=st.binary(max_size=512))  # fmt: skip
def test_no_table_makes_it_leave_ram(table, head, avail, tables):
    memory = GuestMemory([(0, RAM), (HOLE, RAM)])
    driver = DriverQueue(memory, PAGE, SIZE)
    queue = queue_of(memory, driver)
    memory.write(DATA, tables)
    for index, (gpa, length, flags, following) in enumerate(table):
        driver.descriptor(index, gpa, length, flags, following)
    for _ in range(avail):
        driver.publish(head)
    try:
        for _ in range(avail):
            taken = queue.take()
            if taken is None:
                break
            for data, writable in taken[1]:
                assert 0 < len(data) <= RAM
                if writable:
                    data[:1] = data[:1]
            queue.give_back(taken[0], 0)
    except ValueError:
        pass
    finally:
        del queue
        taken = data = None
        memory.close()
