"""RAM that nobody writes any more: the file that guests are mapped over.

A private mapping shows what others write to pages that it has not yet written itself, so the file
must stand still once the guest that made it has its own private mapping in place of the shared one,
at the same address, so that KVM's slots and everybody's pointers stay what they are. A memfd of
ours is sealed then (F_SEAL_FUTURE_WRITE, fcntl(2)). A file of a tmpfs has no seals: it is opened
again for reading only, and what could write is closed. That takes 70 us whatever the size.
"""

from libc.errno cimport EINTR, ENXIO, errno
from libc.stdint cimport uint64_t
from libc.string cimport memcmp, memset
from posix.types cimport off_t
from posix.unistd cimport close as c_close

from cpython.buffer cimport PyBuffer_FillInfo
from vmm._native.host.fd cimport check
from vmm._native.memory.guestmem cimport MAX_REGIONS, TMPFS, GuestMemory
from vmm._native.memory.pagemap cimport Ranges, private_pages, ranges_free

import os

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <errno.h>
    #include <fcntl.h>
    #include <sys/mman.h>
    #include <unistd.h>
    #ifndef F_SEAL_FUTURE_WRITE
    #define F_SEAL_FUTURE_WRITE 0x0010
    #endif
    static int vmm_seal(int fd) {
        return fcntl(fd, F_ADD_SEALS,
                     F_SEAL_FUTURE_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
    }
    """
    int PROT_READ, PROT_WRITE, MAP_SHARED, MAP_PRIVATE, MAP_FIXED, MAP_NORESERVE
    int MADV_DONTDUMP, MADV_DONTFORK, SEEK_DATA, SEEK_HOLE
    int MFD_CLOEXEC, MFD_ALLOW_SEALING
    void *MAP_FAILED
    int memfd_create(const char *name, unsigned int flags)
    int ftruncate(int fd, off_t length)
    void *mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset)
    int munmap(void *addr, size_t length)
    int madvise(void *addr, size_t length, int advice) nogil
    int vmm_seal(int fd)
    off_t lseek(int fd, off_t offset, int whence) nogil
    ssize_t pwrite(int fd, const void *data, size_t length, off_t offset) nogil

cdef enum:
    PAGE = 4096

cdef char ZEROS[PAGE]


cdef class FrozenView:
    """A stretch of frozen RAM as a read-only buffer; keeps the mapping while it is used."""

    cdef FrozenRam ram
    cdef uint64_t start
    cdef Py_ssize_t length

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.ram.data + self.start, self.length, 1, flags)


cdef class FrozenRam:
    """A file with a guest's RAM from ``offset`` on: the regions one behind the other.

    It owns ``fd``. Any thread may read.
    """

    def __cinit__(self, int fd, regions, uint64_t offset=0):
        self.fd = fd
        self.offset = offset
        for gpa, size in regions:
            if self.count == MAX_REGIONS:
                raise ValueError(f"more than {MAX_REGIONS} regions of RAM")
            self.table[self.count] = FrozenRegion(gpa, size)
            self.count += 1
            self.size += size
        self.open_view()

    def __dealloc__(self):
        if self.data != NULL:
            munmap(self.data, self.size)
        if self.fd >= 0:
            c_close(self.fd)

    cdef int open_view(self) except -1:
        cdef void *got = mmap(NULL, self.size, PROT_READ, MAP_SHARED | MAP_NORESERVE, self.fd,
                              self.offset)
        if got == MAP_FAILED:
            check(-1, b"mmap of frozen RAM")
        self.data = <char *>got
        madvise(got, self.size, MADV_DONTDUMP)
        madvise(got, self.size, MADV_DONTFORK)
        return 0

    @property
    def regions(self):
        """(gpa, size) of each region, in bytes."""
        return [(self.table[i].gpa, self.table[i].size) for i in range(self.count)]

    cdef uint64_t offset_of(self, gpa, length) except? 0xFFFFFFFFFFFFFFFF:
        cdef uint64_t start = 0
        # SAFETY: what is returned has ``length`` bytes behind it in this region, so in ``data``.
        for i in range(self.count):
            if self.table[i].gpa <= gpa and 0 < length <= (
                    self.table[i].gpa + self.table[i].size - gpa):
                return start + gpa - self.table[i].gpa
            start += self.table[i].size
        told = ", ".join([f"[{at:#x}, {at + size:#x})" for at, size in self.regions])
        raise ValueError(f"[{gpa:#x}, {gpa + length:#x}) is not inside the snapshot's RAM {told}")

    cdef uint64_t gpa_of(self, uint64_t page) noexcept nogil:
        cdef uint64_t offset = page * PAGE
        cdef int i
        for i in range(self.count):
            if offset < self.table[i].size:
                return self.table[i].gpa + offset
            offset -= self.table[i].size
        return 0

    def view(self, gpa, length):
        """A read-only memoryview of [gpa, gpa + length), no copy."""
        cdef FrozenView view = FrozenView()
        view.start = self.offset_of(gpa, length)
        view.length = length
        view.ram = self
        return memoryview(view)

    def data_range(self, uint64_t start):
        """(first, end) of the next bytes from ``start`` on that the file has, or None."""
        cdef off_t first = lseek(self.fd, self.offset + start, SEEK_DATA)
        cdef off_t end
        if first < 0:
            if errno == ENXIO:
                return None
            check(-1, b"lseek(SEEK_DATA) in frozen RAM")
        end = lseek(self.fd, first, SEEK_HOLE)
        check(-1 if end < 0 else 0, b"lseek(SEEK_HOLE) in frozen RAM")
        first = (first - self.offset) & ~(<off_t>PAGE - 1)
        end = min(<uint64_t>(end - self.offset + PAGE - 1) & ~(<uint64_t>PAGE - 1), self.size)
        return None if <uint64_t>first >= self.size else (first, end)

    cdef int put_under(self, GuestMemory memory) except -1:
        """Lay the guest's RAM over this file: what it wrote before is gone. Same addresses."""
        cdef uint64_t offset = self.offset
        cdef void *got
        if memory.regions != self.regions:
            raise ValueError(f"the snapshot's RAM {self.regions} is not this guest's, "
                             f"{memory.regions}")
        for i in range(memory.count):
            # SAFETY: the region is a mapping of the guest's RAM of exactly this size.
            got = mmap(memory.table[i].hva, memory.table[i].size, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE, self.fd, offset)
            check(-1 if got == MAP_FAILED else 0, b"mmap of guest RAM over its snapshot")
            madvise(memory.table[i].hva, memory.table[i].size, MADV_DONTDUMP)
            madvise(memory.table[i].hva, memory.table[i].size, MADV_DONTFORK)
            offset += memory.table[i].size
        memory.base = self
        return 0


cdef FrozenRam freeze(GuestMemory memory, int pagemap_fd):
    """The file under a guest's RAM as it is now, made when there is none; the guest stands still.

    Shared RAM is that file already. Private RAM is copied, as far as it was ever written.
    """
    if memory.hugepage_size:
        raise ValueError("RAM in huge pages (hugepages=on) cannot be taken into a snapshot: the "
                         "host has none left to copy to; use thp=on in its place")
    if memory.base is None:
        if memory.owned_fd >= 0:
            freeze_shared(memory)
        else:
            fd = make_file(memory, pagemap_fd)
            FrozenRam(fd, memory.regions).put_under(memory)
    return memory.base


cdef int freeze_shared(GuestMemory memory) except -1:
    cdef FrozenRam frozen = FrozenRam(still_fd(memory), memory.regions)
    cdef uint64_t offset = 0
    try:
        frozen.put_under(memory)
        if memory.file_kind != TMPFS:
            check(vmm_seal(frozen.fd), b"fcntl(F_ADD_SEALS) of guest RAM")
    except BaseException:
        # As it was, or a later snapshot would miss what is written now.
        for i in range(memory.count):
            mmap(memory.table[i].hva, memory.table[i].size, PROT_READ | PROT_WRITE,
                 MAP_SHARED | MAP_FIXED | MAP_NORESERVE, memory.owned_fd, offset)
            offset += memory.table[i].size
        memory.advise(False)
        memory.base = None
        raise
    c_close(memory.owned_fd)
    memory.owned_fd = -1
    return 0


cdef int still_fd(GuestMemory memory) except -1:
    """A descriptor of the guest's file that can be made one through which nobody writes."""
    if memory.file_kind != TMPFS:
        return os.dup(memory.owned_fd)
    # Who may use our /proc/PID/fd needs the right to write for another open: not even we have it.
    os.fchmod(memory.owned_fd, 0o400)
    return os.open(f"/proc/self/fd/{memory.owned_fd}", os.O_RDONLY | os.O_CLOEXEC)


cdef int make_file(GuestMemory memory, int pagemap_fd) except -1:
    """A sealed memfd with a copy of what private RAM holds."""
    cdef Ranges ranges
    cdef uint64_t offset = 0
    cdef int fd = check(memfd_create(b"guest-snapshot", MFD_CLOEXEC | MFD_ALLOW_SEALING),
                        b"memfd_create of a snapshot")
    try:
        check(ftruncate(fd, memory.size), b"ftruncate of a snapshot")
        for i in range(memory.count):
            memset(&ranges, 0, sizeof(ranges))
            try:
                check(private_pages(pagemap_fd, memory.table[i].hva, memory.table[i].size, 0,
                                    &ranges), b"reading /proc/self/pagemap")
                copy_ranges(fd, offset, memory.table[i].hva, &ranges)
            finally:
                ranges_free(&ranges)
            offset += memory.table[i].size
        check(vmm_seal(fd), b"fcntl(F_ADD_SEALS) of a snapshot")
    except BaseException:
        c_close(fd)
        raise
    return fd


cdef int copy_ranges(int fd, uint64_t offset, const char *data, Ranges *ranges) except -1:
    cdef int rc = 0
    cdef size_t i
    with nogil:
        for i in range(ranges.used):
            # SAFETY: private_pages() found these pages inside the region that ``data`` begins.
            rc = rc or write_sparse(fd, offset + ranges.table[i].first * PAGE,
                                    data + ranges.table[i].first * PAGE,
                                    ranges.table[i].count * PAGE)
    return check(rc, b"write of a snapshot's RAM")


cdef int write_sparse(int fd, uint64_t offset, const char *data, uint64_t length) noexcept nogil:
    """pwrite() of whole pages, without those that are zero; 0, or -1 with errno."""
    cdef uint64_t at = 0
    cdef uint64_t end
    cdef ssize_t done
    while at < length:
        if memcmp(data + at, ZEROS, PAGE) == 0:
            at += PAGE
            continue
        end = at + PAGE
        while end < length and memcmp(data + end, ZEROS, PAGE) != 0:
            end += PAGE
        while at < end:
            done = pwrite(fd, data + at, end - at, offset + at)
            if done < 0 and errno != EINTR:
                return -1
            at += max(done, 0)
    return 0
