"""The device's side of a split virtqueue (virtio 1.2, 2.7)."""

from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc

from cpython.buffer cimport PyBUF_WRITE
from cpython.memoryview cimport PyMemoryView_FromMemory

from vmm._native.memory.guestmem cimport GuestMemory

cdef extern from *:
    """
    #include <stdint.h>
    #define vq_load_acquire(p) __atomic_load_n(p, __ATOMIC_ACQUIRE)
    #define vq_load(p) __atomic_load_n(p, __ATOMIC_RELAXED)
    #define vq_store_release(p, v) __atomic_store_n(p, v, __ATOMIC_RELEASE)
    #define vq_store(p, v) __atomic_store_n(p, v, __ATOMIC_RELAXED)
    #define vq_fence() __atomic_thread_fence(__ATOMIC_SEQ_CST)
    """
    uint16_t vq_load_acquire(uint16_t *p) nogil
    uint16_t vq_load(uint16_t *p) nogil
    void vq_store_release(uint16_t *p, uint16_t v) nogil
    void vq_store(uint16_t *p, uint16_t v) nogil
    void vq_fence() nogil

cdef enum:
    DESC_NEXT = 1
    DESC_WRITE = 2
    DESC_INDIRECT = 4
    DESC_SIZE = 16
    AVAIL_NO_INTERRUPT = 1
    USED_NO_NOTIFY = 1
    FLAGS = 0                    # both rings: index of the flags, of idx, of the first entry
    IDX = 1
    RING = 2

REASONS = {
    BROKEN_AVAIL_INDEX: "available index more than a queue ahead",
    BROKEN_DESCRIPTOR_INDEX: "descriptor index outside the table",
    BROKEN_CHAIN_TOO_LONG: "descriptor chain longer than the queue, or a loop",
    BROKEN_ADDRESS: "descriptor outside guest RAM",
    BROKEN_INDIRECT: "bad indirect descriptor",
    BROKEN_ORDER: "readable descriptor behind a writable one",
}


cdef class VirtQueue:
    """One queue over ``memory``. ValueError when an area is misaligned or outside RAM.

    Areas as in virtio 1.2, 2.7: descriptors at ``desc_gpa`` (16 bytes each), the driver's ring at
    ``driver_gpa``, the device's at ``device_gpa``.
    """

    def __cinit__(self, GuestMemory memory not None, int size, uint64_t desc_gpa,
                  uint64_t driver_gpa, uint64_t device_gpa, *, bint event_idx=False,
                  bint indirect=True):
        if not 0 < size <= QUEUE_SIZE_MAX or size & (size - 1):
            raise ValueError(f"queue size {size}: a power of two up to {QUEUE_SIZE_MAX} is needed")
        self.memory = memory
        self.size = size
        self.event_idx = event_idx
        self.indirect = indirect
        self.table = <Descriptor *>area(memory, "descriptor", desc_gpa, DESC_SIZE * size, 16)
        self.avail = <uint16_t *>area(memory, "driver", driver_gpa, 6 + 2 * size, 2)
        self.used = <uint16_t *>area(memory, "device", device_gpa, 6 + 8 * size, 4)

    cdef int pop(self, uint16_t *head, Segment *segments) noexcept nogil:
        cdef uint16_t idx = vq_load_acquire(&self.avail[IDX])
        cdef uint16_t first
        cdef Descriptor one
        cdef char *table
        cdef int count
        if idx == self.next_avail:
            return 0
        if <uint16_t>(idx - self.next_avail) > self.size:
            return BROKEN_AVAIL_INDEX
        first = vq_load(&self.avail[RING + (self.next_avail & (self.size - 1))])
        if first >= self.size:
            return BROKEN_DESCRIPTOR_INDEX
        # SAFETY: first < size, and the whole table was checked to be inside guest RAM. Each
        # descriptor is fetched once, so that the driver cannot change it between check and use.
        fetch_16_bytes(&one, &self.table[first])
        if one.flags & DESC_INDIRECT:
            # virtio 1.2, 2.7.5.3: the table replaces the chain; it may not be empty or nested.
            # Linux never chains to an indirect descriptor, so one stands alone here.
            if not self.indirect or one.flags & DESC_NEXT or one.length % DESC_SIZE:
                return BROKEN_INDIRECT
            if one.length == 0 or one.length // DESC_SIZE > QUEUE_SIZE_MAX:
                return BROKEN_INDIRECT
            table = self.memory.hva(one.address, one.length)
            if table == NULL:
                return BROKEN_ADDRESS
            count = one.length // DESC_SIZE
            # SAFETY: hva() has checked all of the table, which has one descriptor at least.
            fetch_16_bytes(&one, table)
            count = self.walk(<Descriptor *>table, count, one, segments)
        else:
            count = self.walk(self.table, self.size, one, segments)
        if count < 0:
            return count
        head[0] = first
        self.next_avail += 1
        return count + 1

    cdef bint has_chains(self) noexcept nogil:
        return vq_load(&self.avail[IDX]) != self.next_avail

    cdef int walk(self, Descriptor *table, uint32_t size, Descriptor one,
                  Segment *segments) noexcept nogil:
        cdef int count = 0
        cdef uint32_t seen = 0
        cdef bint writable = False
        while True:
            if seen == self.size:
                return BROKEN_CHAIN_TOO_LONG
            seen += 1
            if one.flags & DESC_INDIRECT:
                return BROKEN_INDIRECT
            if one.flags & DESC_WRITE:
                writable = True
            elif writable:
                return BROKEN_ORDER
            if one.length:
                # SAFETY: hva() checks the whole range; count < self.size by the test of `seen`.
                segments[count].hva = self.memory.hva(one.address, one.length)
                if segments[count].hva == NULL:
                    return BROKEN_ADDRESS
                segments[count].length = one.length
                segments[count].writable = writable
                count += 1
            if not one.flags & DESC_NEXT:
                return count
            if one.next >= size:
                return BROKEN_DESCRIPTOR_INDEX
            # SAFETY: as in pop(): inside a table that was checked as a whole, fetched once.
            fetch_16_bytes(&one, &table[one.next])

    cdef void add_used(self, uint16_t head, uint32_t written) noexcept nogil:
        cdef uint32_t *entry = <uint32_t *>(
            &self.used[RING + 4 * (self.next_used & (self.size - 1))])
        entry[0] = head
        entry[1] = written
        self.next_used += 1
        vq_store_release(&self.used[IDX], self.next_used)

    cdef bint needs_interrupt(self) noexcept nogil:
        cdef uint16_t old = self.signalled
        cdef uint16_t now = self.next_used
        cdef uint16_t event
        self.signalled = now
        if old == now:
            return False
        # The used index must be visible before the driver's wish is read (2.7.7.2, 2.7.8).
        vq_fence()
        if not self.event_idx:
            return not vq_load(&self.avail[FLAGS]) & AVAIL_NO_INTERRUPT
        event = vq_load(&self.avail[RING + self.size])
        return <uint16_t>(now - event - 1) < <uint16_t>(now - old)

    cdef bint enable_notify(self) noexcept nogil:
        if self.event_idx:
            vq_store(&self.used[RING + 4 * self.size], self.next_avail)
        else:
            vq_store(&self.used[FLAGS], 0)
        # The wish must be visible before the ring is looked at for the last time.
        vq_fence()
        return vq_load_acquire(&self.avail[IDX]) != self.next_avail

    cdef void disable_notify(self) noexcept nogil:
        # With EVENT_IDX a stale event index does it: the driver has passed it already.
        if not self.event_idx:
            vq_store(&self.used[FLAGS], USED_NO_NOTIFY)

    cdef void mute(self) noexcept nogil:
        # An event index that the driver has passed, by as little as possible.
        if self.event_idx:
            vq_store(&self.used[RING + 4 * self.size], self.next_avail - 1)
        else:
            vq_store(&self.used[FLAGS], USED_NO_NOTIFY)

    def positions(self):
        """(next available, next used, used when last asked about an interrupt), 16 bits each."""
        return self.next_avail, self.next_used, self.signalled

    def set_positions(self, uint16_t next_avail, uint16_t next_used, uint16_t signalled):
        """Go on from positions(); nobody serves the queue meanwhile."""
        self.next_avail, self.next_used, self.signalled = next_avail, next_used, signalled

    def take(self):
        """The next chain as (head, [(bytearray or length, writable), ...]); None when empty.

        Readable segments come as bytes, writable ones as memoryviews. ValueError with the reason
        when the ring is broken. For tests and scripts.
        """
        cdef uint16_t head = 0
        cdef Segment *segments = <Segment *>malloc(self.size * sizeof(Segment))
        if segments == NULL:
            raise MemoryError
        cdef int count = self.pop(&head, segments)
        try:
            if count < 0:
                raise ValueError(REASONS[count])
            if count == 0:
                return None
            found = []
            for i in range(count - 1):
                # No typed memoryview: Cython's imports `collections`, which no start can afford.
                view = PyMemoryView_FromMemory(
                    segments[i].hva, segments[i].length, PyBUF_WRITE
                )
                if segments[i].writable:
                    found.append((memoryview(view), True))
                else:
                    found.append((bytes(view), False))
            return head, found
        finally:
            free(segments)

    def give_back(self, uint16_t head, uint32_t written):
        """add_used(), then whether an interrupt is wanted; for tests and scripts."""
        self.add_used(head, written)
        return self.needs_interrupt()

    def rearm(self):
        """enable_notify(): True when chains are waiting; for tests and scripts."""
        return self.enable_notify()


cdef char *area(GuestMemory memory, str what, uint64_t gpa, uint64_t length,
                int alignment) except NULL:
    cdef char *found = memory.hva(gpa, length)
    if gpa % alignment or found == NULL:
        raise ValueError(f"{what} area of {length} bytes at {gpa:#x}: outside guest RAM or not "
                         f"aligned to {alignment}")
    return found


def reason_text(int reason):
    """What a BROKEN_ reason means."""
    return REASONS.get(reason, f"reason {reason}")
