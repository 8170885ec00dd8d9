"""A split virtqueue as the device sees it (virtio 1.2, 2.7).

Used by one thread at a time. The driver is not trusted: every index, address and length is read
once and checked before use.
"""

from libc.stdint cimport uint16_t, uint32_t, uint64_t

from vmm._native.memory.guestmem cimport GuestMemory

# The only ways to copy from memory that the guest writes at the same time: each byte is loaded
# exactly once, which memcpy() does not promise, so that what was checked is what is used.
cdef extern from *:
    """
    #include <stddef.h>
    #include <stdint.h>
    #include <string.h>
    static inline void fetch_bytes(void *to, const void *from, size_t length) {
        const volatile unsigned char *bytes = (const volatile unsigned char *)from;
        for (size_t i = 0; i < length; i++)
            ((unsigned char *)to)[i] = bytes[i];
    }
    typedef uint64_t __attribute__((may_alias, aligned(1))) fetched_word;
    static inline void fetch_16_bytes(void *to, const void *from) {
        const volatile fetched_word *words = (const volatile fetched_word *)from;
        uint64_t copy[2] = {words[0], words[1]};
        memcpy(to, copy, sizeof copy);
    }
    """
    void fetch_bytes(void *to, const void *source, size_t length) nogil
    void fetch_16_bytes(void *to, const void *source) nogil

cdef enum:
    QUEUE_SIZE_MAX = 32768
    # Why a ring is broken: negative results of pop().
    BROKEN_AVAIL_INDEX = -1      # the driver's index ran more than a queue ahead
    BROKEN_DESCRIPTOR_INDEX = -2
    BROKEN_CHAIN_TOO_LONG = -3   # a loop, or more descriptors than the queue has
    BROKEN_ADDRESS = -4          # not wholly inside one region of guest RAM
    BROKEN_INDIRECT = -5         # nested, not offered, or of an impossible length
    BROKEN_ORDER = -6            # a readable descriptor behind a writable one

cdef struct Descriptor:
    uint64_t address
    uint32_t length
    uint16_t flags
    uint16_t next

# One piece of a chain; `hva` has been checked for `length` bytes. Never of length 0.
cdef struct Segment:
    char *hva
    uint32_t length
    bint writable

cdef class VirtQueue:
    cdef GuestMemory memory
    cdef readonly uint16_t size
    cdef bint event_idx
    cdef bint indirect
    cdef Descriptor *table
    cdef uint16_t *avail         # flags, idx, ring[size], used_event
    cdef uint16_t *used          # flags, idx, ring of (u32 id, u32 length), avail_event
    cdef uint16_t next_avail
    cdef uint16_t next_used
    cdef uint16_t signalled      # next_used when the driver was last asked about an interrupt

    # Takes the next chain: its head, and up to `size` segments (readable ones first). Returns the
    # number of segments + 1, 0 when the ring is empty, or a BROKEN_ reason.
    cdef int pop(self, uint16_t *head, Segment *segments) noexcept nogil
    # Whether pop() would find something; takes nothing.
    cdef bint has_chains(self) noexcept nogil
    # Gives a chain back; `written` is what the device wrote into it.
    cdef void add_used(self, uint16_t head, uint32_t written) noexcept nogil
    # After add_used: does the driver want an interrupt for what was added since the last call?
    cdef bint needs_interrupt(self) noexcept nogil
    # Ask for doorbells again; True when chains arrived meanwhile, so that one must look once more.
    cdef bint enable_notify(self) noexcept nogil
    cdef void disable_notify(self) noexcept nogil
    # As disable_notify(), also right after enable_notify().
    cdef void mute(self) noexcept nogil
    # `one` has been fetched already; it stands in `table`, or leads there when that is indirect.
    cdef int walk(self, Descriptor *table, uint32_t size, Descriptor one,
                  Segment *segments) noexcept nogil
