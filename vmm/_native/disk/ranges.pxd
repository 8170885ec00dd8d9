# How a range is discarded or made to read as zeroes: the way, the piece, and after a failure.

from libc.errno cimport ENODEV, ENOSYS, ENOTTY, EOPNOTSUPP
from libc.stdint cimport int64_t, uint64_t

from vmm._native.disk.request cimport (
    ACTION_DISCARD, ACTION_ZERO, ZERO_BY_RANGE, ZERO_BY_WRITING, Request,
)
from vmm._native.linux.virtio_blk cimport VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_UNSUPP

cdef extern from *:
    """
    #include <linux/falloc.h>
    /* Never written, so all of it is the kernel's one page of zeroes. */
    static char vmm_zeroes[1 << 20] __attribute__((aligned(4096)));
    """
    int FALLOC_FL_PUNCH_HOLE, FALLOC_FL_KEEP_SIZE, FALLOC_FL_ZERO_RANGE
    char vmm_zeroes[]

cdef enum:
    ZEROES = 1 << 20             # what vmm_zeroes has
    # A range is changed in pieces, so that the thread can stop in between. Where a block device
    # cannot zero by itself its kernel writes, hence the smaller piece.
    RANGE_STEP = 1 << 30
    BLOCK_ZERO_STEP = 32 << 20

cdef inline bint is_range(const Request *request) noexcept nogil:
    return request.action == ACTION_DISCARD or request.action == ACTION_ZERO

cdef inline bint by_writing(const Request *request) noexcept nogil:
    return request.action == ACTION_ZERO and request.method == ZERO_BY_WRITING

cdef inline void begin_step(Request *request, bint block_device) noexcept nogil:
    # The next piece. Pieces end at multiples of their size in the file.
    cdef uint64_t most = RANGE_STEP
    if by_writing(request):
        most = ZEROES
    elif block_device and request.action == ACTION_ZERO:
        most = BLOCK_ZERO_STEP
    request.step = min(request.length, most - request.offset % most)
    if by_writing(request):
        # SAFETY: iov has an entry at least, and the guest's data in it has been read by now.
        request.first = 0
        request.count = 1
        request.iov[0].iov_base = vmm_zeroes
        request.iov[0].iov_len = request.step

cdef inline int range_mode(Request *request) noexcept nogil:
    # A hole in a block device reads as zeroes, or its kernel refuses (Linux 4.9 on).
    if request.action == ACTION_ZERO and request.method == ZERO_BY_RANGE:
        return FALLOC_FL_KEEP_SIZE | FALLOC_FL_ZERO_RANGE
    return FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE

cdef inline bint another_way(Request *request, int64_t result, int *methods) noexcept nogil:
    # After a failure: True when there is one, else the status is set. What cannot be done at all
    # is not tried again; other refusals (of an odd alignment, say) are this request's alone.
    cdef bint never = (result == -EOPNOTSUPP or result == -ENOSYS or result == -ENODEV
                       or result == -ENOTTY)
    if request.action == ACTION_DISCARD:
        request.status = VIRTIO_BLK_S_UNSUPP if never else VIRTIO_BLK_S_IOERR
        return False
    if request.method == ZERO_BY_WRITING:
        request.status = VIRTIO_BLK_S_IOERR
        return False
    request.method += 1
    if never:
        methods[request.unmap] = request.method
    return True
