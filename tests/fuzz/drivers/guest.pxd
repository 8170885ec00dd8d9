"""The guest's side of a virtqueue (guest.h), and a rig of both sides that drivers share."""

from libc.stdint cimport uint16_t, uint32_t, uint64_t

from vmm._native.memory.guestmem cimport GuestMemory
from vmm._native.virtio.virtqueue cimport Segment, VirtQueue

cdef extern from "guest.h" nogil:
    int NEXT, WRITE, INDIRECT, PIECES, CHAINS, DATA_GPA, NEIGHBOUR
    ctypedef struct Dice:
        uint64_t state
        uint32_t hostile
        uint64_t cursor
    ctypedef struct GuestDescriptor:
        uint64_t address
        uint32_t length
        uint16_t flags, next
    ctypedef struct GuestRegion:
        uint64_t gpa, size
        char *hva
    ctypedef struct Piece:
        uint64_t address
        uint32_t length
        int writable
    ctypedef struct Chain:
        uint16_t head
        int count
        uint32_t readable, writable
        Piece pieces[64]
    ctypedef struct GuestRing:
        GuestRegion ram[2]
        GuestDescriptor *table
        uint16_t *avail
        uint16_t *used
        uint16_t size, next_avail
        int indirect, free
    void dice_begin(Dice *d, uint64_t seed, uint64_t index)
    uint64_t dice_roll(Dice *d)
    uint32_t dice_below(Dice *d, uint32_t limit)
    int dice_bad(Dice *d)
    void dice_choose_hostility(Dice *d)
    int guest_look(const int *at)
    void guest_put(char *to, const void *source, size_t length)
    uint16_t guest_used(const GuestRing *ring)
    char *guest_at(const GuestRing *ring, uint64_t gpa, uint64_t length)
    int guest_neighbours(const GuestRing *ring)
    int guest_neighbour_unhurt(const GuestRing *ring, size_t bytes)
    void guest_neighbours_go(const GuestRing *ring)
    uint64_t guest_place(Dice *d, const GuestRing *ring, uint32_t length)
    uint32_t guest_length(Dice *d, uint32_t usual)
    int guest_add(Dice *d, GuestRing *ring, const Piece *pieces, int count)
    void guest_show(Dice *d, GuestRing *ring)
    int guest_read_chain(const GuestRing *ring, uint16_t position, Chain *chain, int *moves)


cdef class Ram:
    """Two regions of guest RAM with a hole, and neighbours that show who left them."""

    cdef readonly GuestMemory memory
    cdef GuestRing ring          # its regions only
    cdef bint there


cdef class Rig:
    """One queue and its driver."""

    cdef readonly VirtQueue queue
    cdef Ram ram
    cdef GuestRing ring
    # What is expected of the next chains, and whether that can be told at all.
    cdef Chain expected[64]
    cdef int chains
    cdef bint broken
    cdef int moves

    # Both sides begin anew, at a place that the dice give.
    cdef void renew(self, Dice *dice) noexcept nogil
    # Reads what the driver has shown.
    cdef void expect(self) noexcept nogil
    # The number of chains that were given back.
    cdef uint16_t given_back(self, uint16_t before) noexcept nogil
