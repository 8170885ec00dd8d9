# Reads of what the page cache has, without the ring.
#
# A ring makes of a read a request that is set up, completed and looked for, a microsecond in all.
# Asked to wait for nothing (preadv2(2), RWF_NOWAIT) the kernel copies what it has, as the first try
# of the ring would; what it does not have goes to the ring. Each miss makes as many reads go there
# at once, and twice as many as the miss before.

from libc.errno cimport EOPNOTSUPP, errno
from libc.stdint cimport int64_t, uint32_t

from vmm._native.disk.request cimport ACTION_READ, Request
from vmm._native.disk.syscalls cimport RWF_NOWAIT, preadv2

cdef enum:
    CACHE_REST_MAX = 256         # reads

cdef struct CacheReads:
    uint32_t rest                # reads that are not tried
    uint32_t last_rest
    bint refused                 # the file system knows no such reads

cdef inline int64_t read_if_cached(CacheReads *luck, int fd, const Request *request,
                                   int entries) noexcept nogil:
    # Bytes, perhaps fewer than asked for; 0: nothing was read, for whatever reason.
    cdef int64_t rc
    if request.action != ACTION_READ or luck.refused:
        return 0
    if luck.rest:
        luck.rest -= 1
        return 0
    rc = preadv2(fd, &request.iov[request.first], entries, request.offset, RWF_NOWAIT)
    if rc > 0:
        luck.last_rest //= 4
        return rc
    luck.refused = rc < 0 and errno == EOPNOTSUPP
    luck.last_rest = min(max(luck.last_rest * 2, 1), <uint32_t>CACHE_REST_MAX)
    luck.rest = luck.last_rest
    return 0
