"""RAM that nobody writes any more: the file that guests are mapped over."""

from libc.stdint cimport uint64_t

from vmm._native.memory.guestmem cimport MAX_REGIONS, GuestMemory

cdef struct FrozenRegion:
    uint64_t gpa
    uint64_t size

cdef class FrozenRam:
    cdef readonly int fd
    cdef readonly uint64_t offset        # where RAM begins in the file
    cdef readonly uint64_t size
    cdef FrozenRegion table[MAX_REGIONS]
    cdef int count
    cdef char *data                      # all of it, read only

    cdef int open_view(self) except -1
    # Where [gpa, gpa + length), all in one region, begins in ``data``; ValueError elsewhere.
    cdef uint64_t offset_of(self, gpa, length) except? 0xFFFFFFFFFFFFFFFF
    cdef uint64_t gpa_of(self, uint64_t page) noexcept nogil
    cdef int put_under(self, GuestMemory memory) except -1

# The file under a guest's RAM as it is now, made when there is none yet.
cdef FrozenRam freeze(GuestMemory memory, int pagemap_fd)
cdef int write_sparse(int fd, uint64_t offset, const char *data, uint64_t length) noexcept nogil
