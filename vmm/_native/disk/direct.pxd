# Direct I/O: which requests the kernel takes as they are, and a buffer between for the others.
#
# statx(2): a place in the file and the length of each buffer are multiples of one number, a
# buffer's address of another. What a guest asks for need not be: it goes by way of a small aligned
# buffer, in pieces, on the worker's own thread.

from libc.errno cimport errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy

from vmm._native.disk.iov cimport iovec
from vmm._native.disk.request cimport Request

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <pthread.h>
    #include <sys/mman.h>
    #include <unistd.h>
    /* Parts of one block must not be written by two queues at once. Such writes are rare, so that
     * all disks share this. */
    static pthread_mutex_t vmm_part_lock = PTHREAD_MUTEX_INITIALIZER;
    static void vmm_lock_parts(void) { pthread_mutex_lock(&vmm_part_lock); }
    static void vmm_unlock_parts(void) { pthread_mutex_unlock(&vmm_part_lock); }
    #define VMM_PRIVATE (MAP_PRIVATE | MAP_ANONYMOUS)
    static char *vmm_bounce_map(size_t length) {
        int rights = PROT_READ | PROT_WRITE;
        void *found = mmap(NULL, length, rights, VMM_PRIVATE, -1, 0);
        return found == MAP_FAILED ? NULL : found;
    }
    static void vmm_bounce_unmap(char *buffer, size_t length) {
        if (buffer) munmap(buffer, length);
    }
    """
    void vmm_lock_parts() nogil
    void vmm_unlock_parts() nogil
    char *vmm_bounce_map(size_t length) nogil
    void vmm_bounce_unmap(char *buffer, size_t length) nogil
    ssize_t pread(int fd, void *data, size_t length, int64_t offset) nogil
    ssize_t pwrite(int fd, const void *data, size_t length, int64_t offset) nogil

cdef enum:
    # Of the buffer between; a file whose blocks are larger is not opened for direct I/O.
    BOUNCE = 65536

# Powers of two up to BOUNCE; 0 where the file goes through the page cache.
cdef struct Alignment:
    uint32_t memory
    uint32_t file

cdef inline bint misaligned(const Request *request, int entries,
                            const Alignment *rule) noexcept nogil:
    cdef uint64_t lengths = request.offset
    cdef uint64_t addresses = 0
    cdef int i
    if not rule.file:
        return False
    for i in range(request.first, request.first + entries):
        lengths |= request.iov[i].iov_len
        addresses |= <uint64_t>request.iov[i].iov_base
    return (lengths & (rule.file - 1)) != 0 or (addresses & (rule.memory - 1)) != 0

cdef inline void copy_data(const Request *request, int entries, char *buffer, uint64_t length,
                           bint into_guest) noexcept nogil:
    # The first `length` bytes that the request has left: into the buffer, or out of it. The guest
    # may change them meanwhile: they are its data, and nothing is decided by them.
    cdef const iovec *piece
    cdef uint64_t take
    cdef int i
    for i in range(request.first, request.first + entries):
        piece = &request.iov[i]
        take = min(<uint64_t>piece.iov_len, length)
        if into_guest:
            memcpy(piece.iov_base, buffer, take)
        else:
            memcpy(buffer, <const void *>piece.iov_base, take)      # data, not checked
        buffer += take
        length -= take
        if length == 0:
            return

cdef inline int64_t whole_blocks(int fd, char *buffer, uint64_t start, uint64_t end, uint64_t first,
                                 uint64_t last, uint32_t block) noexcept nogil:
    # The blocks at both ends of [start, end), of which [first, last) has only a part.
    cdef ssize_t rc = block
    if first != start:
        rc = pread(fd, buffer, block, start)
    if rc == block and last != end and (end - block != start or first == start):
        rc = pread(fd, buffer + (end - block - start), block, end - block)
    if rc < 0:
        return -errno
    return rc if rc == block else 0

cdef inline int64_t write_between(int fd, const Request *request, int entries, char *buffer,
                                  uint64_t start, uint64_t end, uint64_t length,
                                  uint32_t block) noexcept nogil:
    cdef uint64_t skip = request.offset - start
    cdef bint parts = skip != 0 or request.offset + length != end
    cdef int64_t rc = block
    if parts:
        vmm_lock_parts()
        rc = whole_blocks(fd, buffer, start, end, request.offset, request.offset + length, block)
    if rc > 0:
        copy_data(request, entries, buffer + skip, length, False)
        rc = pwrite(fd, buffer, end - start, start)
        if rc < 0:
            rc = -errno
    if parts:
        vmm_unlock_parts()
    return rc

cdef inline int64_t move_between(int fd, const Request *request, int entries, char *buffer,
                                 uint32_t block, bint write) noexcept nogil:
    # The next piece of a request by way of `buffer` (BOUNCE bytes): bytes done, or -errno.
    cdef uint64_t start = request.offset & ~<uint64_t>(block - 1)
    cdef uint64_t length = 0
    cdef uint64_t end
    cdef int64_t rc
    cdef int i
    for i in range(request.first, request.first + entries):
        length += request.iov[i].iov_len
    length = min(length, start + BOUNCE - request.offset)
    end = (request.offset + length + block - 1) & ~<uint64_t>(block - 1)
    if write:
        rc = write_between(fd, request, entries, buffer, start, end, length, block)
    else:
        rc = pread(fd, buffer, end - start, start)
        rc = -errno if rc < 0 else rc
    if rc < 0:
        return rc
    if <uint64_t>rc <= request.offset - start:
        return 0
    length = min(length, rc - (request.offset - start))
    if not write:
        copy_data(request, entries, buffer + (request.offset - start), length, True)
    return length
