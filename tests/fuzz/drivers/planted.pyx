"""Devices with one check taken out: what a target has to find before it is believed."""

from libc.stdint cimport uint8_t, uint32_t

from vmm._native.console.uart cimport Uart
from vmm._native.virtio.virtqueue cimport Descriptor, Segment, VirtQueue, fetch_16_bytes

cdef extern from "<sched.h>" nogil:
    int sched_yield()

cdef enum:
    NEXT = 1
    WRITE = 2


cdef class BlindQueue(VirtQueue):
    """Looks at where a piece begins and not at where it ends."""

    cdef int walk(self, Descriptor *table, uint32_t size, Descriptor one,
                  Segment *segments) noexcept nogil:
        cdef int count = 0
        cdef uint32_t seen = 0
        while True:
            if seen == self.size:
                return -3
            seen += 1
            if one.length:
                segments[count].hva = self.memory.hva(one.address, 1)
                if segments[count].hva == NULL:
                    return -4
                segments[count].length = one.length
                segments[count].writable = (one.flags & WRITE) != 0
                count += 1
            if not one.flags & NEXT:
                return count
            if one.next >= size:
                return -2
            fetch_16_bytes(&one, &table[one.next])


cdef class TwiceQueue(VirtQueue):
    """Reads a length again after it was checked: only a driver that writes meanwhile is a danger.
    """

    cdef int walk(self, Descriptor *table, uint32_t size, Descriptor one,
                  Segment *segments) noexcept nogil:
        cdef int count = VirtQueue.walk(self, table, size, one, segments)
        for i in range(count):
            segments[i].length = self.length_again(table, size, segments[i])
        return count

    cdef uint32_t length_again(self, Descriptor *table, uint32_t size,
                               Segment segment) noexcept nogil:
        cdef Descriptor one
        # As long as another thread has a processor of its own: how long one is away is luck.
        sched_yield()
        for i in range(size):
            fetch_16_bytes(&one, &table[i])
            if self.memory.hva(one.address, 1) == segment.hva and one.length:
                return one.length
        return segment.length


cdef class BlindUart(Uart):
    """Keeps bits of the modem control register that there are not."""

    cdef void write_register(self, int offset, uint8_t value) noexcept nogil:
        if offset == 4:
            self.mcr = value
            return
        Uart.write_register(self, offset, value)


cdef extern from *:
    """
    #include <pthread.h>
    #include <stdlib.h>
    static int raced;
    static void *race_on(void *unused) {
        for (int i = 0; i < 100000; i++)
            raced++;
        return unused;
    }
    static int behind_the_end(int by) {
        volatile char *block = malloc(16);
        int found = block[15 + by];
        free((void *)block);
        return found;
    }
    static int shifted(int by) { return 1 << by; }
    static int two_at_once(void) {
        pthread_t threads[2];
        for (int i = 0; i < 2; i++)
            pthread_create(&threads[i], NULL, race_on, NULL);
        for (int i = 0; i < 2; i++)
            pthread_join(threads[i], NULL);
        return raced;
    }
    """
    int behind_the_end(int by) nogil
    int shifted(int by) nogil
    int two_at_once() nogil


def misbehave(str how):
    """What only a sanitizer sees: a read behind a block, an impossible shift, a race."""
    if how == "overflow":
        return behind_the_end(1)
    if how == "undefined":
        return shifted(40)
    with nogil:
        two_at_once()
