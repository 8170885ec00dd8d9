# A virtio-blk request (virtio 1.2, 5.2.6) and its buffers.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from vmm._native.disk.iov cimport iovec
from vmm._native.virtio.virtqueue cimport Segment

cdef enum Action:
    ACTION_DONE = 0              # answered already; `status` says how
    ACTION_READ = 1
    ACTION_WRITE = 2
    ACTION_FLUSH = 3
    ACTION_DISCARD = 4           # nothing is promised about what is read afterwards
    ACTION_ZERO = 5              # reads as zeroes afterwards, whichever way

# How a range comes to read as zeroes, the cheapest first. One that fails is followed by the next.
cdef enum ZeroMethod:
    ZERO_BY_HOLE = 0             # fallocate(PUNCH_HOLE): gives the space back
    ZERO_BY_RANGE = 1            # fallocate(ZERO_RANGE): keeps it
    ZERO_BY_WRITING = 2

cdef struct Request:
    uint16_t head
    int action
    uint8_t status
    uint8_t *status_hva
    uint64_t offset              # byte in the file
    uint64_t length              # bytes still to do
    uint32_t written             # what goes into the used ring
    uint32_t data_bytes
    iovec *iov                   # queue size entries
    int first                    # first entry still to do
    int count                    # entries in all
    int tries                    # in a row that moved nothing
    bint then_flush              # write-through: fdatasync before the answer
    bint unmap                   # ACTION_ZERO: the space may be given back
    int method                   # ACTION_ZERO: a ZeroMethod
    uint64_t step                # bytes of a range that the call in progress covers

cdef enum:
    # A used length is 32 bits wide and counts the status byte too.
    DATA_MAX = 0x7ffff000
    IOV_MAX_ENTRIES = 1024       # what the kernel takes in one call (UIO_MAXIOV)

cdef inline int entries_of(const Request *request) noexcept nogil:
    return min(request.count - request.first, IOV_MAX_ENTRIES)

cdef inline bint moves_data(const Request *request) noexcept nogil:
    return request.action == ACTION_READ or request.action == ACTION_WRITE

cdef inline bint set_data(Request *request, const Segment *segments, int count, bint writable,
                          uint64_t skip, uint64_t drop) noexcept nogil:
    # The segments of one direction without the first `skip` and the last `drop` bytes.
    cdef uint64_t total = 0
    cdef uint64_t length
    cdef char *start
    cdef int i
    request.first = 0
    request.count = 0
    for i in range(count):
        if segments[i].writable != writable:
            continue
        start = segments[i].hva
        length = segments[i].length
        if i == count - 1:
            length -= drop           # the status byte; a segment has at least one
        if skip:
            if skip >= length:
                skip -= length
                continue
            start += skip
            length -= skip
            skip = 0
        if length == 0:
            continue
        # SAFETY: count <= queue size, which is the number of entries of iov.
        request.iov[request.count].iov_base = start
        request.iov[request.count].iov_len = length
        request.count += 1
        total += length
    request.length = total
    request.data_bytes = <uint32_t>total
    return skip == 0 and total <= DATA_MAX

cdef inline void skip_done(Request *request, uint64_t done) noexcept nogil:
    # A part of the data, less than all that is left, has been moved.
    request.length -= done
    request.offset += done
    while done >= request.iov[request.first].iov_len:
        done -= request.iov[request.first].iov_len
        request.first += 1
    request.iov[request.first].iov_base = <char *>request.iov[request.first].iov_base + done
    request.iov[request.first].iov_len -= done
