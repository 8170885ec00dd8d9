"""A guest's RAM at one moment: a frozen file, and the pages that differ from it.

Taking one copies only the pages that were written since the file was frozen, by whomever; the first
copies none. Restoring copies back only such pages. Nothing here is proportional to the guest's RAM.
"""

from libc.errno cimport EINTR, errno
from libc.stdint cimport uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memset
from posix.types cimport off_t
from posix.unistd cimport close as c_close

from vmm._native.host.fd cimport check
from vmm._native.memory.frozenram cimport FrozenRam, freeze, write_sparse
from vmm._native.memory.guestmem cimport GuestMemory
from vmm._native.memory.pagemap cimport (
    Ranges,
    open_pagemap,
    private_pages,
    ranges_free,
)

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <sys/mman.h>
    #include <unistd.h>
    """
    int PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_ANONYMOUS, MAP_NORESERVE
    int MADV_DONTNEED, MADV_DONTDUMP, MADV_DONTFORK
    void *MAP_FAILED
    void *mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset)
    int munmap(void *addr, size_t length)
    int madvise(void *addr, size_t length, int advice) nogil
    ssize_t pwrite(int fd, const void *data, size_t length, off_t offset) nogil

cdef enum:
    PAGE = 4096
    # Up to so many written pages are copied over in place: 0.1 us each, and the guest's next write
    # finds its page. Above, they are dropped all at once, and each costs a fault of 2 us or more
    # when it is written again.
    COPY_MAX = 8192


cdef class RamImage:
    """RAM as it was; never changes. Any thread may read it."""

    def __cinit__(self, FrozenRam base):
        self.base = base

    def __dealloc__(self):
        free(self.numbers)
        if self.data != NULL:
            munmap(self.data, self.count * PAGE)

    cdef int allocate(self, uint64_t count) except -1:
        if count == 0:
            return 0
        self.numbers = <uint64_t *>malloc(count * sizeof(uint64_t))
        if self.numbers == NULL:
            raise MemoryError
        got = mmap(NULL, count * PAGE, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        check(-1 if got == MAP_FAILED else 0, b"mmap of a snapshot's pages")
        self.data = <char *>got
        self.count = count
        madvise(got, count * PAGE, MADV_DONTDUMP)
        madvise(got, count * PAGE, MADV_DONTFORK)
        return 0

    cdef uint64_t find(self, uint64_t page) noexcept nogil:
        """Where ``page`` is, or would be, in ``numbers``."""
        cdef uint64_t low = 0
        cdef uint64_t high = self.count
        cdef uint64_t middle
        while low < high:
            middle = (low + high) // 2
            if self.numbers[middle] < page:
                low = middle + 1
            else:
                high = middle
        return low

    cdef const char *page(self, uint64_t number) noexcept nogil:
        cdef uint64_t at = self.find(number)
        # SAFETY: ``number`` is that of a page of the base, as all callers see to.
        if at < self.count and self.numbers[at] == number:
            return self.data + at * PAGE
        return self.base.data + number * PAGE

    @property
    def regions(self):
        """(gpa, size) of each region, in bytes."""
        return self.base.regions

    @property
    def size(self):
        """All RAM in bytes."""
        return self.base.size

    def changed(self, gpa, length):
        """How many pages of [gpa, gpa + length) are not in the frozen file but apart."""
        cdef uint64_t start = self.base.offset_of(gpa, length)
        return self.find((start + length + PAGE - 1) // PAGE) - self.find(start // PAGE)

    def read(self, gpa, length):
        """A copy of ``length`` bytes at ``gpa``; ValueError unless inside one region."""
        cdef uint64_t start
        cdef uint64_t done = 0
        cdef uint64_t some
        if length == 0:
            return b""
        start = self.base.offset_of(gpa, length)
        content = bytearray(length)
        cdef char *out = content
        while done < <uint64_t>length:
            some = min(PAGE - (start + done) % PAGE, <uint64_t>length - done)
            # SAFETY: offset_of() has checked that the whole is inside the base.
            memcpy(out + done, self.page((start + done) // PAGE) + (start + done) % PAGE, some)
            done += some
        return bytes(content)

    def spawn(self):
        """New guest RAM with this content: private pages over the file, nothing copied but
        ``count`` pages."""
        cdef GuestMemory memory = GuestMemory(self.base.regions, base=self.base)
        cdef Ranges none
        memset(&none, 0, sizeof(none))
        copy_back(memory, self, &none)
        return memory

    def write_to(self, int fd, uint64_t offset):
        """Write it to a file from ``offset`` on, without the pages that are zero."""
        cdef uint64_t at = 0
        cdef uint64_t i
        cdef uint64_t first
        cdef uint64_t length
        cdef int rc = 0
        while (found := self.base.data_range(at)) is not None:
            first, at = found
            length = at - first
            # SAFETY: data_range() ends inside the base.
            with nogil:
                rc = write_sparse(fd, offset + first, self.base.data + first, length)
            check(rc, b"write of the RAM")
        with nogil:
            for i in range(self.count):
                rc = rc or write_page(fd, offset + self.numbers[i] * PAGE, self.data + i * PAGE)
        check(rc, b"write of the RAM")

    def differing(self, RamImage other):
        """The gpas of the pages that differ, as bytes of uint64 in ascending order."""
        if self.base.regions != other.base.regions:
            raise ValueError(f"snapshots of different RAM: {self.regions} and {other.regions}")
        found = bytearray()
        for first, end in candidates(self, other):
            compare(self, other, first, end, found)
        return bytes(found)


cdef int write_page(int fd, uint64_t offset, const char *data) noexcept nogil:
    """One page, zero or not: it may replace one of the base."""
    cdef uint64_t done = 0
    cdef ssize_t some
    while done < PAGE:
        some = pwrite(fd, data + done, PAGE - done, offset + done)
        if some < 0 and errno != EINTR:
            return -1
        done += max(some, 0)
    return 0


cdef list candidates(RamImage a, RamImage b):
    """Ranges of page numbers in which the two may differ."""
    numbers = sorted({a.numbers[i] for i in range(a.count)}
                     | {b.numbers[i] for i in range(b.count)})
    found = [(number, number + 1) for number in numbers]
    if a.base is not b.base:
        for base in (a.base, b.base):
            at = 0
            while (extent := base.data_range(at)) is not None:
                found.append((extent[0] // PAGE, extent[1] // PAGE))
                at = extent[1]
    return merged(sorted(found))


def merged(ranges):
    """Sorted ranges without overlap."""
    out = []
    start = stop = 0
    for first, end in ranges:
        if first > stop:
            out.append((start, stop))
            start = first
        stop = max(stop, end)
    return [*out, (start, stop)]


cdef int compare(RamImage a, RamImage b, uint64_t first, uint64_t end, bytearray found) except -1:
    cdef uint64_t number
    cdef uint64_t gpa
    for number in range(first, end):
        if memcmp(a.page(number), b.page(number), PAGE) != 0:
            gpa = a.base.gpa_of(number)
            found += (<char *>&gpa)[:sizeof(gpa)]
    return 0


cdef class RamTracker:
    """Takes and restores images of one guest's RAM, while none of its threads runs."""

    def __cinit__(self, GuestMemory memory):
        self.pagemap_fd = -1
        self.memory = memory

    def __dealloc__(self):
        self.close()

    def close(self):
        """Close the pagemap; images stay good, and the next one opens it again. Idempotent."""
        if self.pagemap_fd >= 0:
            c_close(self.pagemap_fd)
            self.pagemap_fd = -1

    cdef int open(self) except -1:
        # Not before it is needed: most forks are never taken or restored themselves.
        if self.memory.closed:
            raise ValueError("the guest's memory is closed")
        if self.pagemap_fd < 0:
            self.pagemap_fd = open_pagemap()
        return 0

    cdef int scan(self, Ranges *ranges) except -1:
        """The pages that differ from the frozen file, or did once: whoever wrote them."""
        cdef uint64_t first = 0
        cdef int rc = 0
        cdef int i
        self.open()
        with nogil:
            for i in range(self.memory.count):
                rc = rc or private_pages(self.pagemap_fd, self.memory.table[i].hva,
                                         self.memory.table[i].size, first, ranges)
                first += self.memory.table[i].size // PAGE
        return check(rc, b"reading /proc/self/pagemap")

    def capture(self):
        """An image of RAM as it is now."""
        cdef Ranges ranges
        self.open()
        cdef RamImage image = RamImage(freeze(self.memory, self.pagemap_fd))
        memset(&ranges, 0, sizeof(ranges))
        try:
            self.scan(&ranges)
            image.allocate(ranges.pages)
            with nogil:
                take(self.memory, image, &ranges)
        finally:
            ranges_free(&ranges)
        return image

    def restore(self, RamImage image):
        """Make RAM what it was; how many pages were copied. Same addresses."""
        cdef Ranges ranges
        cdef int rc = 0
        cdef int i
        memset(&ranges, 0, sizeof(ranges))
        if self.memory.base is not image.base:
            image.base.put_under(self.memory)
        try:
            self.scan(&ranges)
            if ranges.pages > COPY_MAX:
                with nogil:
                    for i in range(self.memory.count):
                        rc = rc or madvise(self.memory.table[i].hva, self.memory.table[i].size,
                                           MADV_DONTNEED)
                check(rc, b"madvise(MADV_DONTNEED) of guest RAM")
                ranges_free(&ranges)
            return copy_back(self.memory, image, &ranges)
        finally:
            ranges_free(&ranges)

    def written(self):
        """(page number, count) of the pages that are the guest's own by now; for tests."""
        cdef Ranges ranges
        memset(&ranges, 0, sizeof(ranges))
        try:
            self.scan(&ranges)
            return [(ranges.table[i].first, ranges.table[i].count) for i in range(ranges.used)]
        finally:
            ranges_free(&ranges)


cdef char *hva_of(GuestMemory memory, uint64_t page) noexcept nogil:
    """The host address of a page by its number in the file; NULL when there is none."""
    cdef uint64_t offset = page * PAGE
    cdef int i
    # SAFETY: the regions lie in the file one behind the other, each as long as its mapping.
    for i in range(memory.count):
        if offset < memory.table[i].size:
            return memory.table[i].hva + offset
        offset -= memory.table[i].size
    return NULL


cdef void take(GuestMemory memory, RamImage image, Ranges *ranges) noexcept nogil:
    """Copy the pages of ``ranges`` into the image."""
    cdef uint64_t done = 0
    cdef uint64_t k
    cdef size_t i
    for i in range(ranges.used):
        for k in range(ranges.table[i].count):
            image.numbers[done + k] = ranges.table[i].first + k
            # SAFETY: scan() found the page in this memory, and ``data`` has room for all of them.
            memcpy(image.data + (done + k) * PAGE, hva_of(memory, ranges.table[i].first + k), PAGE)
        done += ranges.table[i].count


cdef uint64_t copy_back(GuestMemory memory, RamImage image, Ranges *ranges) noexcept:
    """Restore the pages of ``ranges`` and those that the image has apart; how many."""
    # SAFETY: image and memory have the same regions, so each page number is one of this memory.
    cdef uint64_t next = 0
    cdef uint64_t copied = 0
    cdef uint64_t number
    cdef uint64_t k
    cdef size_t i
    with nogil:
        for i in range(ranges.used):
            for k in range(ranges.table[i].count):
                number = ranges.table[i].first + k
                while next < image.count and image.numbers[next] < number:
                    memcpy(hva_of(memory, image.numbers[next]), image.data + next * PAGE, PAGE)
                    next += 1
                    copied += 1
                if next < image.count and image.numbers[next] == number:
                    memcpy(hva_of(memory, number), image.data + next * PAGE, PAGE)
                    next += 1
                else:
                    memcpy(hva_of(memory, number), image.base.data + number * PAGE, PAGE)
                copied += 1
        while next < image.count:
            memcpy(hva_of(memory, image.numbers[next]), image.data + next * PAGE, PAGE)
            next += 1
            copied += 1
    return copied
