"""Guest RAM: a short table of regions, each one mapping of host memory."""

from libc.stdint cimport uint64_t

cdef enum:
    MAX_REGIONS = 8

cdef struct Region:
    uint64_t gpa
    uint64_t size
    char *hva
    int fd               # memfd behind the mapping, or -1

cdef class GuestMemory:
    cdef object __weakref__
    cdef Region table[MAX_REGIONS]
    cdef readonly int count
    cdef readonly bint closed
    cdef int exports     # buffers handed to Python and not yet released

    # The host address of [gpa, gpa + length), or NULL unless it lies wholly inside one region.
    # length 0 is NULL. Callable from any thread as long as the owner keeps the object open.
    cdef char *hva(self, uint64_t gpa, uint64_t length) noexcept nogil
    cdef char *require(self, gpa, length) except NULL
    cdef int map_region(self, uint64_t gpa, uint64_t size, int fd, uint64_t offset,
                        unsigned long hugepage_size) except -1
    cdef void advise(self, bint mergeable, bint thp) noexcept
    cdef void unmap(self) noexcept
