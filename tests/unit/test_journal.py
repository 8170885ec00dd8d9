"""The judge of a killed guest's disk sees what is lost, and only that."""

from __future__ import annotations

import struct

from tests.support.journal import BLOCK, BLOCKS, lost


def image(numbers: dict[int, int], torn: tuple[int, ...] = ()) -> bytearray:
    """Blocks with these records; ``torn`` ones have two."""
    made = bytearray(1 << 20)
    for block, number in numbers.items():
        for at in range(0, BLOCK, 512):
            word = struct.pack("<I", number - BLOCKS if block in torn and at else number)
            for end in (0, 508):
                made[block * BLOCK + at + end : block * BLOCK + at + end + 4] = word
    return made


def row(last: int) -> dict[int, int]:
    return {number % BLOCKS: number for number in range(max(1, last - BLOCKS + 1), last + 1)}


def test_all_is_there():
    assert lost(image(row(100)), 100) == []
    assert lost(image(row(3)), 3) == []


def test_the_guest_was_ahead():
    assert lost(image(row(133)), 100) == []
    assert lost(image(row(104), torn=(102 % BLOCKS, 104 % BLOCKS)), 100) == []


def test_an_old_record_and_a_torn_one_are_lost():
    numbers = row(100)
    numbers[98 % BLOCKS] = 98 - BLOCKS
    assert lost(image(numbers), 100) == [98]
    assert lost(image(row(100), torn=(70 % BLOCKS,)), 100) == [70]
    assert lost(image({}), 2) == [1, 2]
