# Which requests of a ring are free, and their buffers' addresses.
#
# A queue full of the longest requests would hold 256 KiB for ever: each slot has room for FEW
# buffers, as most requests have, and LONG requests with more are under way at once.

from libc.stdint cimport uint32_t
from libc.stdlib cimport calloc, free

from vmm._native.disk.iov cimport iovec

cdef enum:
    FEW = 16
    LONG = 16

cdef struct Slots:
    uint32_t size                # of the queue
    int *free                    # a stack of them
    int free_count
    iovec *few                   # FEW entries of each slot
    iovec *many                  # queue size entries, LONG times
    int *long_of                 # which of `many` a slot has, or -1
    int free_long[LONG]
    int long_count

cdef inline bint slots_make(Slots *slots, uint32_t size) noexcept:
    # False without memory; slots_drop() gives back what was got.
    cdef int slot
    slots.size = size
    slots.free = <int *>calloc(size, sizeof(int))
    slots.long_of = <int *>calloc(size, sizeof(int))
    slots.few = <iovec *>calloc(size, FEW * sizeof(iovec))
    slots.many = <iovec *>calloc(size, LONG * sizeof(iovec))
    if not (slots.free and slots.long_of and slots.few and slots.many):
        return False
    for slot in range(<int>size):
        slots.free[slot] = slot
        slots.long_of[slot] = -1
    slots.free_count = size
    for slot in range(LONG):
        slots.free_long[slot] = slot
    slots.long_count = LONG
    return True

cdef inline void slots_drop(Slots *slots) noexcept nogil:
    free(slots.free)
    free(slots.long_of)
    free(slots.few)
    free(slots.many)

cdef inline bint slots_left(const Slots *slots) noexcept nogil:
    # Whether there is one, whatever its request's length.
    return slots.free_count and slots.long_count

cdef inline int slot_next(const Slots *slots) noexcept nogil:
    # The one that slot_take() gives; slots_left() said that there is one.
    return slots.free[slots.free_count - 1]

cdef inline iovec *slot_take(Slots *slots, int slot, int count) noexcept nogil:
    # slot_next(), for a request with so many buffers; their places.
    # SAFETY: a chain has at most as many segments as the queue has entries, and so have the long
    # ones, of which slots_left() has seen that one is free.
    slots.free_count -= 1
    if count <= FEW:
        return &slots.few[<size_t>slot * FEW]
    slots.long_count -= 1
    slots.long_of[slot] = slots.free_long[slots.long_count]
    return &slots.many[<size_t>slots.long_of[slot] * slots.size]

cdef inline void slot_give_back(Slots *slots, int slot) noexcept nogil:
    if slots.long_of[slot] >= 0:
        slots.free_long[slots.long_count] = slots.long_of[slot]
        slots.long_count += 1
        slots.long_of[slot] = -1
    slots.free[slots.free_count] = slot
    slots.free_count += 1
