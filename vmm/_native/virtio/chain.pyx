"""A virtqueue for a device that is a script: its buffers are copied, addresses never leave here."""

from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer

from vmm._native.virtio.virtqueue cimport Segment, VirtQueue
from vmm._native.virtio.worker cimport signal_fd

from vmm._native.virtio.virtqueue import reason_text

cdef enum:
    # A request of more is none of a driver that means well; one may name all RAM many times over.
    CHAIN_MAX = 64 << 20


class BrokenQueue(ValueError):
    """The driver's ring is malformed: the device needs a reset (virtio 1.2, 2.1.2)."""


cdef class ChainQueue:
    """One queue of the driver's: take() gives a Chain. Any thread, with the GIL.

    ``call_fd`` is written for an interrupt (-1: none); it is borrowed. After stop() nothing of the
    guest's memory is touched any more.
    """

    cdef VirtQueue ring
    cdef readonly int index
    cdef readonly int in_use         # chains taken and not done
    cdef int call_fd
    cdef bint live

    def __cinit__(self, VirtQueue ring not None, int index, int call_fd):
        self.ring = ring
        self.index = index
        self.call_fd = call_fd
        self.live = True

    @property
    def size(self):
        """How many chains the queue holds."""
        return self.ring.size

    @property
    def alive(self):
        """False once the driver reset the device, or the guest was closed."""
        return self.usable()

    cdef bint usable(self):
        return self.live and not self.ring.memory.closed

    def stop(self):
        """The driver resets the device: chains that are in use become nothing. Idempotent."""
        self.live = False

    def take(self):
        """The next chain, or None. BrokenQueue says what the driver did wrong; it ends the queue.
        """
        cdef Chain chain
        if not self.usable():
            return None
        chain = Chain(self)
        cdef int count = self.ring.pop(&chain.head, chain.segments)
        if count == 0:
            return None
        if count < 0:
            self.live = False
            raise BrokenQueue(reason_text(count))
        chain.measure(count - 1)
        if chain.out_left > CHAIN_MAX or chain.in_left > CHAIN_MAX:
            self.live = False
            raise BrokenQueue(f"a chain of more than {CHAIN_MAX} bytes")
        if self.in_use >= self.ring.size:
            self.live = False
            raise BrokenQueue("more chains than the queue has, without an answer to the first")
        self.in_use += 1
        chain.open = True
        return chain

    def rearm(self):
        """Ask for doorbells again; True when chains are waiting already."""
        return self.usable() and self.ring.enable_notify()


cdef class Chain:
    """One request: bytes from the driver, and room for an answer. Any thread, with the GIL.

    read() and write() go on where the last one ended. After done() and after a reset of the device
    there is nothing to read and no room.
    """

    cdef ChainQueue queue
    cdef Segment *segments
    cdef int count
    cdef uint16_t head
    cdef bint open
    cdef int out_at, in_at           # the segment in which the next byte is
    cdef uint32_t out_offset, in_offset
    cdef uint64_t out_left, in_left
    cdef uint64_t written_bytes

    def __cinit__(self, ChainQueue queue not None):
        self.queue = queue
        self.segments = <Segment *>calloc(queue.ring.size, sizeof(Segment))
        if self.segments == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.segments)

    cdef void measure(self, int count):
        cdef int i
        self.count = self.in_at = count
        for i in range(count):
            if not self.segments[i].writable:
                self.out_left += self.segments[i].length
                continue
            self.in_left += self.segments[i].length
            if i < self.in_at:
                self.in_at = i

    cdef bint usable(self):
        return self.open and self.queue.usable()

    @property
    def readable(self):
        """Bytes from the driver that were not read yet."""
        return self.out_left if self.usable() else 0

    @property
    def writable(self):
        """Bytes of room that were not written yet."""
        return self.in_left if self.usable() else 0

    @property
    def written(self):
        """Bytes written so far."""
        return self.written_bytes

    def read(self, length=None):
        """The driver's next ``length`` bytes, or as many as there are; None: all. Read once."""
        cdef uint64_t wanted = self.out_left
        cdef uint32_t some
        cdef Segment *segment
        if length is not None:
            if length < 0:
                raise ValueError(f"{length} bytes to read")
            wanted = min(wanted, <uint64_t>min(length, CHAIN_MAX))
        if not self.usable():
            return b""
        parts = []
        while wanted:
            segment = &self.segments[self.out_at]
            some = <uint32_t>min(wanted, <uint64_t>(segment.length - self.out_offset))
            # SAFETY: pop() has checked [hva, hva + length) to be guest RAM, which usable() found
            # mapped; nobody unmaps it while the GIL is held. What is looked at is the copy.
            parts.append((segment.hva + self.out_offset)[:<Py_ssize_t>some])
            self.out_offset += some
            self.out_left -= some
            wanted -= some
            if self.out_offset == segment.length:
                self.out_at += 1
                self.out_offset = 0
        return b"".join(parts)

    def write(self, data):
        """Give the driver ``data``, as far as there is room; returns how many bytes that were."""
        cdef Py_buffer buffer
        PyObject_GetBuffer(data, &buffer, PyBUF_SIMPLE)
        try:
            return self.fill(<const char *>buffer.buf, <uint64_t>buffer.len)
        finally:
            PyBuffer_Release(&buffer)

    cdef uint64_t fill(self, const char *data, uint64_t length):
        cdef uint64_t left = min(length, self.in_left)
        cdef uint64_t done = 0
        cdef uint32_t some
        cdef Segment *segment
        if not self.usable():
            return 0
        while left:
            segment = &self.segments[self.in_at]
            some = <uint32_t>min(left, <uint64_t>(segment.length - self.in_offset))
            # SAFETY: as in read(); writable segments are the last ones, `in_left` their bytes.
            memcpy(segment.hva + self.in_offset, data + done, some)
            done += some
            left -= some
            self.in_left -= some
            self.in_offset += some
            if self.in_offset == segment.length:
                self.in_at += 1
                self.in_offset = 0
        self.written_bytes += done
        return done

    def done(self, length=None):
        """Give the request back; ``length`` is what was written (None: as counted).

        RuntimeError the second time; nothing happens after a reset.
        """
        cdef uint64_t used = self.written_bytes
        if not self.open:
            raise RuntimeError("done() of a chain that was given back already")
        if length is not None:
            if not 0 <= length <= self.written_bytes + self.in_left:
                raise ValueError(f"done({length}): the driver gave "
                                 f"{self.written_bytes + self.in_left} bytes of room")
            used = length
        self.open = False
        self.queue.in_use -= 1
        if self.queue.usable():
            self.queue.ring.add_used(self.head, <uint32_t>used)
            if self.queue.ring.needs_interrupt():
                signal_fd(self.queue.call_fd)

    def __repr__(self):
        return f"<chain of queue {self.queue.index}: {self.readable} to read, {self.writable} free>"
