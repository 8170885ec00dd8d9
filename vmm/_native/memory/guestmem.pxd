"""Guest RAM: a short table of regions, each one mapping of host memory."""

from libc.stdint cimport uint64_t

cdef enum:
    MAX_REGIONS = 8

cdef struct Region:
    uint64_t gpa
    uint64_t size
    char *hva

cdef class GuestMemory:
    cdef object __weakref__
    cdef Region table[MAX_REGIONS]
    cdef readonly int count
    cdef readonly bint closed
    cdef int exports     # buffers handed to Python and not yet released
    cdef int owned_fd    # memfd of shared memory, or -1
    cdef readonly object base    # what private memory lies over (fd, offset), or None
    cdef readonly unsigned long hugepage_size
    cdef bint thp

    # The host address of [gpa, gpa + length), or NULL unless it lies wholly inside one region.
    # length 0 is NULL. Callable from any thread as long as the owner keeps the object open.
    cdef char *hva(self, uint64_t gpa, uint64_t length) noexcept nogil
    cdef char *require(self, gpa, length) except NULL
    cdef int map_region(self, uint64_t gpa, uint64_t size, int fd, uint64_t offset) except -1
    cdef void advise(self, bint mergeable) noexcept
    cdef void unmap(self) noexcept
