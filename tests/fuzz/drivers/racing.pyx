"""A driver that goes on writing into rings and buffers while the device's thread serves them."""

from libc.stdint cimport uint16_t, uint32_t, uint64_t

from tests.fuzz.drivers.guest cimport *
from vmm._native.virtio.worker cimport Worker, signal_fd

from tests.fuzz.drivers.guest import Found

cdef extern from "<sched.h>" nogil:
    int sched_yield()

cdef extern from *:
    """
    /* What the guest writes while its device looks: any field of any descriptor, or a head. */
    GUEST void scribble(Dice *d, GuestRing *ring) {
        uint32_t at = dice_below(d, ring->size);
        volatile GuestDescriptor *one = &ring->table[at];
        switch (dice_below(d, 10)) {
        case 0: one->address = ring->ram[0].size - dice_below(d, 2048); break;
        case 1: one->length = dice_below(d, 2048); break;
        case 2: one->length = guest_length(d, 512); break;
        case 3: one->length = 0xfffffff0; break;
        case 4: one->flags = dice_below(d, 4); break;
        case 5: one->next = dice_below(d, ring->size); break;
        case 6: ring->avail[0] = dice_below(d, 2); break;
        case 7: ring->avail[2 + ring->size] = (uint16_t)dice_roll(d); break;
        case 8: *(volatile uint64_t *)(ring->ram[0].hva + (guest_place(d, ring, 8) & 0xffff8))
                    = dice_roll(d); break;
        default: ring->avail[2 + at] = dice_below(d, ring->size); break;
        }
    }
    """
    void scribble(Dice *d, GuestRing *ring) nogil

cdef enum:
    TURNS = 200                  # to wait for a device that is behind


cdef void add_chain(Dice *dice, GuestRing *ring) noexcept nogil:
    cdef Piece pieces[24]
    cdef uint32_t kind = dice_below(dice, 14)
    cdef uint64_t sector = dice_below(dice, 560)
    cdef int count = 2 + dice_below(dice, 3)
    cdef int i
    cdef char *at
    for i in range(count):
        pieces[i].length = 512 * (1 + dice_below(dice, 3))
        if i == 0 or i == count - 1:
            pieces[i].length = 16 if i == 0 else 1
        pieces[i].length = guest_length(dice, pieces[i].length)
        pieces[i].address = guest_place(dice, ring, pieces[i].length)
        pieces[i].writable = i == count - 1 or (i and kind != 1)
    at = guest_at(ring, pieces[0].address, 16)
    if at != NULL:
        guest_put(at, &kind, 4)
        guest_put(at + 8, &sector, 8)
    if not guest_add(dice, ring, pieces, count):
        ring.free = 0
        guest_add(dice, ring, pieces, count)


cdef void wait_for_room(GuestRing *ring, Worker worker, int kick) noexcept nogil:
    cdef int turns = 0
    while <uint16_t>(ring.next_avail - guest_used(ring)) > ring.size // 2 and turns < TURNS:
        if guest_look(&worker.broken):
            return
        signal_fd(kick)
        sched_yield()
        turns += 1


cdef uint64_t drive(uint64_t seed, uint64_t first, uint64_t count, Rig rig, Worker worker,
                    int kick) noexcept nogil:
    # Inputs until the device gives up its ring; returns the number of the next one.
    cdef Dice dice
    cdef uint64_t index = first
    while index < first + count and not guest_look(&worker.broken):
        dice_begin(&dice, seed, index)
        dice.hostile = 400
        add_chain(&dice, &rig.ring)
        guest_show(&dice, &rig.ring)
        signal_fd(kick)
        for _ in range(dice_below(&dice, 6)):
            scribble(&dice, &rig.ring)
        wait_for_room(&rig.ring, worker, kick)
        index += 1
    return index


cdef void begin_anew(Rig rig, Worker worker) noexcept:
    worker.broken = 0
    rig.queue.next_avail = rig.ring.next_avail
    rig.queue.next_used = rig.queue.signalled = rig.ring.next_avail
    rig.ring.used[1] = rig.ring.next_avail
    rig.ring.avail[1] = rig.ring.next_avail
    rig.ring.free = 0


def run(uint64_t seed, uint64_t first, uint64_t count, uint64_t[::1] progress, ram, list pairs):
    """``pairs`` are (rig, worker, kick fd) of one device, all of whose threads are running.

    A ring that its device has given up begins anew. Found when something behind RAM has changed.
    """
    cdef uint64_t index = first
    cdef uint64_t until
    cdef Rig rig
    cdef Worker worker
    cdef int kick
    turn = 0
    while index < first + count:
        rig, worker, kick = pairs[turn % len(pairs)]
        turn += 1
        until = min(first + count, index + 64)
        progress[0] = index
        with nogil:
            index = drive(seed, index, until - index, rig, worker, kick)
        if guest_look(&worker.broken):
            worker.pause()
            begin_anew(rig, worker)
            worker.start("fuzzed")
        if turn % 64 == 0 and not ram.unhurt():
            break
    for _, worker, _ in pairs:
        worker.pause()
    if not ram.unhurt():
        raise Found(index, "something was written behind guest RAM (by one of the last inputs)")
