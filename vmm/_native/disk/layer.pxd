"""One layer of a disk: which clusters it has, and their bytes at the same places in a file."""

from libc.stdint cimport uint8_t, uint64_t

cdef enum:
    # A block of most file systems, so that few writes need what lay below.
    CLUSTER = 4096

cdef class Layer:
    cdef readonly int fd
    cdef readonly uint64_t size          # of the disk in bytes
    cdef readonly uint64_t clusters
    cdef readonly uint64_t written       # clusters that it has
    cdef readonly bint frozen            # nothing changes it any more
    cdef uint8_t *bits                   # one for each cluster
    cdef size_t bits_length

    cdef uint64_t count(self) noexcept nogil
    # `cluster` < clusters; any thread.
    cdef bint has(self, uint64_t cluster) noexcept nogil
    # Under the overlay's lock, and only of one that is not frozen.
    cdef void add(self, uint64_t first, uint64_t end) noexcept nogil
