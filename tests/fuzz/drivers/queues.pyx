"""The virtqueue alone, against what the specification says of each chain."""

from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc

from tests.fuzz.drivers.guest cimport *
from vmm._native.virtio.virtqueue cimport Segment

from tests.fuzz.drivers.guest import Found, Ram, rigs
from vmm._native.virtio.virtqueue import VirtQueue


cdef void make_input(Dice *dice, Rig rig) noexcept nogil:
    cdef Piece pieces[24]
    cdef int chains = 1 + dice_below(dice, 4)
    cdef int count, readable
    dice_choose_hostility(dice)
    rig.renew(dice)
    for _ in range(chains):
        count = 1 + dice_below(dice, 6)
        readable = dice_below(dice, count + 1)
        for i in range(count):
            pieces[i].length = guest_length(dice, 1 + dice_below(dice, 600))
            pieces[i].address = guest_place(dice, &rig.ring, pieces[i].length)
            pieces[i].writable = i >= readable
        guest_add(dice, &rig.ring, pieces, count)
    guest_show(dice, &rig.ring)


cdef const char *compare(const Chain *chain, const Segment *segments, int count, uint16_t head,
                         const GuestRing *ring) noexcept nogil:
    if count != chain.count or head != chain.head:
        return b"a chain of another length or head"
    for i in range(count):
        if segments[i].length != chain.pieces[i].length:
            return b"a piece of another length"
        if segments[i].writable != chain.pieces[i].writable:
            return b"a piece of the other direction"
        if segments[i].hva != guest_at(ring, chain.pieces[i].address, chain.pieces[i].length):
            return b"a piece at another place, or outside RAM"
    return NULL


cdef bint inside(const Segment *segments, int count, const GuestRing *ring) noexcept nogil:
    cdef const GuestRegion *ram
    cdef bint good
    for i in range(count):
        good = False
        for n in range(2):
            ram = &ring.ram[n]
            if segments[i].hva >= ram.hva and segments[i].hva + segments[i].length <= (
                    ram.hva + ram.size):
                good = True
        if not good:
            return False
    return True


cdef const char *one(Dice *dice, Rig rig, Segment *segments) noexcept nogil:
    cdef const char *wrong
    cdef uint16_t head = 0
    cdef uint16_t before
    cdef int taken = 0
    cdef int count
    make_input(dice, rig)
    rig.expect()
    before = rig.queue.next_used
    while True:
        count = rig.queue.pop(&head, segments)
        if count <= 0:
            break
        if not inside(segments, count - 1, &rig.ring):
            return b"a piece outside RAM"
        if taken >= rig.chains and not rig.moves:
            return b"a chain that should be refused, or is not there"
        wrong = NULL
        if not rig.moves:
            wrong = compare(&rig.expected[taken], segments, count - 1, head, &rig.ring)
        if wrong != NULL:
            return wrong
        rig.queue.add_used(head, count)
        rig.queue.needs_interrupt()
        taken += 1
    if not rig.moves and (taken != rig.chains or (count < 0) != rig.broken):
        if count < 0:
            return b"a good chain refused"
        return b"a bad ring that is not seen"
    rig.queue.enable_notify()
    if rig.given_back(before) != taken:
        return b"chains not given back"
    return NULL


def run(uint64_t seed, uint64_t first, uint64_t count, uint64_t[::1] progress, make=VirtQueue):
    """``count`` inputs from ``first`` on; Found at the first that is answered wrongly."""
    ram = Ram()
    kept = rigs(ram, [1, 2, 4, 8, 16, 64, 4, 16], make)
    cdef list all_rigs = kept
    cdef Segment *segments = <Segment *>malloc(64 * sizeof(Segment))
    cdef const char *wrong = NULL
    cdef uint64_t index = first
    cdef Dice dice
    cdef Rig rig
    try:
        while index < first + count and wrong == NULL:
            progress[0] = index
            dice_begin(&dice, seed, index)
            rig = <Rig>all_rigs[dice_below(&dice, <uint32_t>len(all_rigs))]
            wrong = one(&dice, rig, segments)
            index += 1
    finally:
        free(segments)
    if wrong != NULL:
        raise Found(index - 1, wrong.decode())
