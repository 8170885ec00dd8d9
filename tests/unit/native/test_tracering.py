"""The ring of exits: order, wrap, what a full one drops, and a writer that never waits."""

from __future__ import annotations

import struct
from threading import Thread

import pytest

from vmm._native.kvm.tracering import RECORD_SIZE, TraceRing, tsc_now
from vmm.debug.tracerecord import RAW


def records(first: int, count: int) -> bytes:
    """``count`` records whose entry TSC is a running number."""
    return b"".join(
        struct.pack("<Q", number) + bytes(RECORD_SIZE - 8) for number in range(first, first + count)
    )


def numbers(data: bytes) -> list[int]:
    return [number for (number, *_) in struct.iter_unpack(f"<Q{RECORD_SIZE - 8}x", data)]


def read(ring: TraceRing, room: int = 64) -> list[int]:
    data = bytearray(room * RECORD_SIZE)
    count = ring.read_into(data)
    return numbers(bytes(data[: count * RECORD_SIZE]))


def test_a_record_is_what_numpy_takes_it_for():
    assert RAW.itemsize == RECORD_SIZE


def test_records_come_out_as_they_went_in_round_and_round():
    ring = TraceRing(8)
    seen = []
    for first in range(0, 50, 5):
        ring.put(records(first, 5))
        assert ring.waiting == 5
        seen += read(ring)
    assert seen == list(range(50))
    assert (ring.written, ring.dropped, ring.waiting) == (50, 0, 0)


def test_a_full_ring_keeps_the_older_ones_and_counts_the_others():
    ring = TraceRing(4)
    ring.put(records(0, 7))
    assert (ring.written, ring.dropped) == (4, 3)
    assert read(ring, 2) == [0, 1]
    ring.put(records(7, 3))
    assert ring.dropped == 4
    assert read(ring) == [2, 3, 7, 8]


def test_a_small_buffer_takes_what_fits():
    ring = TraceRing(4)
    ring.put(records(0, 3))
    assert ring.read_into(bytearray(RECORD_SIZE - 1)) == 0
    assert ring.read_into(bytearray(2 * RECORD_SIZE + 1)) == 2
    with pytest.raises(BufferError):
        ring.read_into(bytes(RECORD_SIZE))
    assert read(ring) == [2]


def test_writer_and_reader_at_once_lose_nothing_that_is_not_counted():
    ring = TraceRing(64)
    total = 200_000
    data = records(0, total)
    writer = Thread(target=ring.put, args=(data,))
    writer.start()
    seen: list[int] = []
    while writer.is_alive() or ring.waiting:
        seen += read(ring)
    writer.join()
    assert seen == sorted(set(seen))
    assert len(seen) == ring.written
    assert ring.written + ring.dropped == total


@pytest.mark.parametrize("size", [0, 1, 3, 1000, -8, 1 << 40])
def test_sizes_that_are_no_power_of_two(size):
    with pytest.raises(ValueError, match=f"a ring of {size} records"):
        TraceRing(size)


def test_a_ring_is_one_vcpu_s_and_then_nobody_else_writes():
    ring = TraceRing(4)
    ring.take(1)
    with pytest.raises(ValueError, match="make another"):
        ring.take(2)
    with pytest.raises(ValueError, match="only the vCPU writes"):
        ring.put(records(0, 1))


def test_both_clocks_go_on():
    one, two = tsc_now(), tsc_now()
    assert two[0] > one[0]
    assert two[1] >= one[1]
