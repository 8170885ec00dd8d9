"""A disk that is an image and layers above it: reads go to the topmost that has it.

Offsets and lengths are bytes of the disk; what is not inside it is refused with -EINVAL.
"""

from libc.stdint cimport int64_t, uint64_t

from vmm._native.disk.iov cimport iovec
from vmm._native.disk.layer cimport Layer

cdef enum:
    DEPTH_MAX = 16

cdef class Overlay:
    cdef readonly int base_fd
    cdef readonly uint64_t size
    cdef object make_layer
    cdef list kept                       # the layers below, which `below` points to
    cdef readonly Layer top              # the one that is written
    cdef void *below[DEPTH_MAX]          # Layer each, the oldest first
    cdef int depth
    cdef void *lock                      # pthread_mutex_t: one write at a time

    # Bytes done (perhaps fewer than asked), or -errno. Any thread.
    cdef int64_t readv(self, const iovec *iov, int count, uint64_t offset) noexcept nogil
    cdef int64_t writev(self, const iovec *iov, int count, uint64_t offset) noexcept nogil
    # 0 or -errno: reads as zeroes afterwards.
    cdef int64_t zero(self, uint64_t offset, uint64_t length) noexcept nogil
    cdef int64_t flush(self) noexcept nogil

    cdef int source(self, uint64_t cluster) noexcept nogil
    cdef int64_t copy_up(self, uint64_t cluster) noexcept nogil
    cdef int64_t complete(self, uint64_t offset, uint64_t length) noexcept nogil
    cdef int64_t write_locked(self, const iovec *iov, int count, uint64_t offset,
                              uint64_t length) noexcept nogil
    cdef int64_t zero_locked(self, uint64_t offset, uint64_t length) noexcept nogil
    cdef int set_chain(self, layers) except -1
    cdef int script(self, int write, char *data, uint64_t length, uint64_t offset) except -1
