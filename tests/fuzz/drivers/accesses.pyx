"""A vCPU's accesses to ports or memory of devices, as fast as the bus takes them."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from tests.fuzz.drivers.guest cimport Dice, dice_begin, dice_below, dice_roll
from vmm._native.kvm.bus cimport Bus

from tests.fuzz.drivers.guest import Found

cdef enum:
    RANGES = 64
    OUTCOME_ERROR = 5

cdef uint64_t CONFIG_ENABLE = 0x80000000

cdef struct Range:
    uint64_t start
    uint64_t length


cdef uint64_t a_value(Dice *dice) noexcept nogil:
    # What a driver writes: few bits, a place in RAM, a configuration address; or anything.
    cdef uint32_t way = dice_below(dice, 8)
    if way < 3:
        return dice_below(dice, 16)
    if way == 3:
        return <uint64_t>1 << dice_below(dice, 64)
    if way == 4:
        return dice_below(dice, 0x4000) << 12
    if way == 5:
        return CONFIG_ENABLE | dice_below(dice, 8) << 11 | dice_below(dice, 64) << 2
    if way == 6:
        return <uint64_t>0xffffffffffffffff
    return dice_roll(dice)


cdef uint64_t an_offset(Dice *dice, uint64_t length) noexcept nogil:
    # Also within windows as large as ECAM's: a function's registers are its first ones.
    cdef uint64_t offset = dice_roll(dice) % length
    if length >= 1 << 20:
        offset = dice_below(dice, 8) << 15 | dice_below(dice, 256)
    elif length > 4096 and dice_below(dice, 2):
        offset = dice_below(dice, 64)
    return offset


def run(uint64_t seed, uint64_t first, uint64_t count, uint64_t[::1] progress, Bus bus, places,
        bint narrow):
    """``count`` accesses to ``places``, which are (start, length); ``narrow``: 4 bytes at most.

    Any thread; returns what the guest's last outcomes were, by number. Found for an error.
    """
    cdef Range ranges[RANGES]
    cdef uint64_t seen[16]
    cdef int known = min(len(places), RANGES)
    cdef uint64_t index = first
    cdef uint64_t at
    cdef uint64_t value
    cdef uint8_t data[8]
    cdef uint32_t size
    cdef int outcome = 0
    cdef int is_write
    cdef Range place
    cdef Dice dice
    for i in range(known):
        ranges[i] = Range(places[i][0], places[i][1])
    for i in range(16):
        seen[i] = 0
    with nogil:
        while index < first + count:
            progress[0] = index
            dice_begin(&dice, seed, index)
            place = ranges[dice_below(&dice, known)]
            size = 1 << dice_below(&dice, 3 if narrow else 4)
            at = place.start + an_offset(&dice, place.length)
            if dice_below(&dice, 4):
                at &= ~<uint64_t>(size - 1)
            is_write = dice_below(&dice, 2)
            value = a_value(&dice) if is_write else <uint64_t>0xffffffffffffffff
            memcpy(data, &value, 8)
            outcome = bus.access(at, data, size, is_write)
            index += 1
            if outcome < 0 or outcome > 7 or outcome == OUTCOME_ERROR:
                break
            seen[outcome] += 1
    if outcome < 0 or outcome > 7 or outcome == OUTCOME_ERROR:
        raise Found(index - 1, f"outcome {outcome} of {at:#x}, {size} bytes: {bus.error!r}")
    return [seen[i] for i in range(8)]
