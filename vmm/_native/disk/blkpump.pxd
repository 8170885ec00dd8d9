"""virtio-blk requests: from a descriptor chain to disk I/O and back (virtio 1.2, 5.2.6)."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from vmm._native.disk.direct cimport Alignment
from vmm._native.disk.iov cimport iovec
from vmm._native.disk.limits cimport Pace
from vmm._native.disk.request cimport Request
from vmm._native.virtio.polling cimport Poller
from vmm._native.virtio.virtqueue cimport Segment, VirtQueue
from vmm._native.virtio.worker cimport Worker

cdef class Flushed:
    cdef public bint failed      # a flush has, through the page cache

cdef class BlkWorker(Worker):
    cdef VirtQueue queue
    cdef int fd
    cdef int kick_fd
    cdef public int call_fd
    cdef readonly bint read_only
    cdef bint block_device
    cdef uint64_t sectors
    cdef public Flushed flushed  # the file's, which its other queues and later workers share
    # Whether DISCARD is offered. WRITE_ZEROES works on everything that can be written.
    cdef public bint can_discard
    cdef int zero_methods[2]     # where to begin without and with `unmap`; grows with failures
    cdef public int writeback    # 1: the guest flushes; 0: every write is flushed
    cdef bytes serial
    cdef uint8_t serial_data[20]
    cdef Segment *segments
    cdef Request *requests       # one; a subclass may have more
    cdef iovec *vectors          # queue size
    cdef Alignment alignment
    cdef char *between           # BOUNCE bytes once a request needed them
    cdef readonly uint64_t bounced
    cdef public bint polling     # may look for work for a moment before it sleeps
    cdef Poller idle             # ... while nothing is under way
    cdef Poller flight           # ... while requests are
    cdef Pace *pace              # NULL: no limits
    cdef object limits           # what `pace` points into
    cdef readonly uint64_t throttled     # times that a request had to wait for it
    cdef readonly uint64_t reads, writes, flushes, discards, errors
    cdef readonly uint64_t read_bytes, written_bytes

    cdef void parse(self, Request *request, int count) noexcept nogil
    cdef void parse_ranges(self, Request *request, uint32_t kind, int count) noexcept nogil
    cdef bint advance(self, Request *request, int64_t result) noexcept nogil
    cdef bint again(self, Request *request) noexcept nogil
    cdef void complete(self, Request *request) noexcept nogil
    cdef void execute(self, Request *request) noexcept nogil
    cdef void count(self, Request *request) noexcept nogil
    # Of these entries of its buffers: whether they need the buffer between.
    cdef bint needs_bounce(self, const Request *request, int entries) noexcept nogil
    cdef int64_t bounce(self, Request *request, int entries, bint write) noexcept nogil
    # One I/O call of a request that is not done: what advance() takes.
    cdef int64_t perform(self, Request *request, int entries) noexcept nogil
    cdef int64_t change_range(self, Request *request) noexcept nogil
    cdef void answer_id(self, Request *request, int count) noexcept nogil
    # ns that the next request, if there is one, must wait for the disk's limits.
    cdef uint64_t held_back(self) noexcept nogil
    cdef bint look_for_chains(self) noexcept nogil
    cdef bint serve(self) noexcept nogil
