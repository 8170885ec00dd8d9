"""Which pages of a private file mapping were written: by the guest, by a device, by anybody."""

from libc.stdint cimport uint64_t

cdef struct Range:
    uint64_t first               # page number
    uint64_t count

cdef struct Ranges:
    Range *table
    size_t used
    size_t room
    uint64_t pages               # of all ranges together

cdef void ranges_free(Ranges *ranges) noexcept nogil
# Appends the private pages of [start, start + size), numbered from ``first_page``, in ascending
# order; 0, or -1 with errno. ``fd`` is /proc/self/pagemap.
cdef int private_pages(int fd, char *start, uint64_t size, uint64_t first_page,
                       Ranges *ranges) noexcept nogil
cdef int open_pagemap() except -1
