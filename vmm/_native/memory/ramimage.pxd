"""A guest's RAM at one moment: a frozen file, and the pages that differ from it."""

from libc.stdint cimport uint64_t

from vmm._native.memory.frozenram cimport FrozenRam
from vmm._native.memory.guestmem cimport GuestMemory
from vmm._native.memory.pagemap cimport Ranges

cdef class RamImage:
    cdef readonly FrozenRam base
    cdef uint64_t *numbers       # of the pages in ``data``, ascending
    cdef readonly uint64_t count
    cdef char *data              # their contents, one behind the other

    cdef int allocate(self, uint64_t count) except -1
    cdef uint64_t find(self, uint64_t page) noexcept nogil
    cdef const char *page(self, uint64_t number) noexcept nogil

cdef class RamTracker:
    cdef readonly GuestMemory memory
    cdef int pagemap_fd

    cdef int open(self) except -1
    cdef int scan(self, Ranges *ranges) except -1
