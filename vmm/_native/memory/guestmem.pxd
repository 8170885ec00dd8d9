"""Guest RAM: a short table of regions, each one mapping of host memory."""

from libc.stdint cimport uint64_t

cdef enum:
    MAX_REGIONS = 8

# What holds the memory; those from HUGE_MEMFD on may have huge pages.
cdef enum:
    ANONYMOUS
    MEMFD
    HUGE_MEMFD
    TMPFS
    HUGETLB

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
    cdef int owned_fd    # file of shared memory, or -1
    cdef int file_kind
    cdef int rest[3]     # what ramfile.pxd has yet to settle
    cdef readonly object refused    # why shared memory has small pages although `thp`, or None
    cdef readonly object base    # what private memory lies over (fd, offset), or None
    cdef readonly unsigned long hugepage_size
    cdef bint thp

    # The host address of [gpa, gpa + length), or NULL unless it lies wholly inside one region.
    # length 0 is NULL. Callable from any thread as long as the owner keeps the object open.
    cdef char *hva(self, uint64_t gpa, uint64_t length) noexcept nogil
    cdef char *require(self, gpa, length) except NULL
    cdef int open_file(self, uint64_t size, again) except -1
    cdef int map_region(self, uint64_t gpa, uint64_t size, int fd, uint64_t offset) except -1
    cdef void advise(self, bint mergeable) noexcept
    cdef void unmap(self) noexcept
