"""Which pages of a private file mapping were written: by the guest, by a device, by anybody.

The kernel gives a page of its own to whoever first writes to a MAP_PRIVATE mapping, whether that is
KVM for a guest, a native thread or Python. /proc/self/pagemap tells such pages (present or swapped,
and not of the file) from all others. PAGEMAP_SCAN (from 6.7 on) finds them in 5 us where reading
the file takes 8 bytes a page: 500 us for 256 MiB. Before 6.11 the file does not say of a huge page
whether it is of a file.
Source: Documentation/admin-guide/mm/pagemap.rst.
"""

from libc.errno cimport EINVAL, EIO, ENOMEM, ENOTTY, errno
from libc.stdint cimport uint64_t, uintptr_t
from libc.stdlib cimport free, realloc
from posix.types cimport off_t

from vmm._native.host.fd cimport check

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <fcntl.h>
    #include <linux/types.h>
    #include <stdint.h>
    #include <string.h>
    #include <sys/ioctl.h>
    #include <sys/mman.h>
    #include <unistd.h>
    /* Of <linux/fs.h> from 6.7 on; our headers are older. */
    struct vmm_page_region { __u64 start, end, categories; };
    struct vmm_pm_scan {
        __u64 size, flags, start, end, walk_end, vec, vec_len, max_pages;
        __u64 category_inverted, category_mask, category_anyof_mask, return_mask;
    };
    #define VMM_PAGEMAP_SCAN _IOWR('f', 16, struct vmm_pm_scan)
    #define VMM_PAGE_IS_FILE (1 << 2)
    #define VMM_PAGE_IS_PRESENT (1 << 3)
    #define VMM_PAGE_IS_SWAPPED (1 << 4)
    static int vmm_scan(int fd, __u64 start, __u64 end, struct vmm_page_region *found, int room,
                        uint64_t *walk_end) {
        struct vmm_pm_scan scan;
        int rc;
        memset(&scan, 0, sizeof scan);
        scan.size = sizeof scan;
        scan.start = start;
        scan.end = end;
        scan.vec = (unsigned long)found;
        scan.vec_len = room;
        scan.category_inverted = VMM_PAGE_IS_FILE;
        scan.category_mask = VMM_PAGE_IS_FILE;
        scan.category_anyof_mask = VMM_PAGE_IS_PRESENT | VMM_PAGE_IS_SWAPPED;
        scan.return_mask = VMM_PAGE_IS_FILE;
        rc = ioctl(fd, VMM_PAGEMAP_SCAN, &scan);
        *walk_end = scan.walk_end;
        return rc;
    }
    """
    struct vmm_page_region:
        uint64_t start
        uint64_t end
    int vmm_scan(int fd, uint64_t start, uint64_t end, vmm_page_region *found, int room,
                 uint64_t *walk_end) nogil
    int O_RDONLY, O_CLOEXEC
    int c_open "open"(const char *path, int flags) nogil
    int PROT_READ, PROT_WRITE
    int mprotect(void *addr, size_t length, int prot) nogil
    ssize_t pread(int fd, void *data, size_t length, off_t offset) nogil

cdef enum:
    PAGE = 4096
    FOUND_AT_ONCE = 128
    ENTRIES_AT_ONCE = 2048
    ROOM_FIRST = 64
    HUGE_PAGES = 512    # small ones in a huge one

cdef uint64_t PRESENT_OR_SWAPPED = 3ULL << 62
cdef uint64_t OF_A_FILE = 1ULL << 61


cdef int open_pagemap() except -1:
    return check(c_open(b"/proc/self/pagemap", O_RDONLY | O_CLOEXEC), b"open of /proc/self/pagemap")


cdef void ranges_free(Ranges *ranges) noexcept nogil:
    free(ranges.table)
    ranges.table = NULL
    ranges.used = ranges.room = 0
    ranges.pages = 0


cdef int append(Ranges *ranges, uint64_t first, uint64_t count) noexcept nogil:
    cdef Range *last
    cdef Range *table
    cdef size_t room
    ranges.pages += count
    if ranges.used:
        last = &ranges.table[ranges.used - 1]
        if last.first + last.count == first:
            last.count += count
            return 0
    if ranges.used == ranges.room:
        room = 2 * ranges.room if ranges.room else ROOM_FIRST
        table = <Range *>realloc(ranges.table, room * sizeof(Range))
        if table == NULL:
            (&errno)[0] = ENOMEM
            return -1
        ranges.table = table
        ranges.room = room
    ranges.table[ranges.used] = Range(first, count)
    ranges.used += 1
    return 0


cdef int private_pages(int fd, char *start, uint64_t size, uint64_t first_page,
                       Ranges *ranges) noexcept nogil:
    cdef vmm_page_region found[FOUND_AT_ONCE]
    cdef uint64_t base = <uintptr_t>start
    cdef uint64_t at = base
    cdef uint64_t walk_end = 0
    cdef int count
    cdef int i
    while at < base + size:
        count = vmm_scan(fd, at, base + size, found, FOUND_AT_ONCE, &walk_end)
        if count < 0:
            if errno == ENOTTY or errno == EINVAL:
                return read_entries(fd, base, size, first_page, ranges)
            return -1
        for i in range(count):
            if append(ranges, first_page + (found[i].start - base) // PAGE,
                      (found[i].end - found[i].start) // PAGE) < 0:
                return -1
        at = walk_end
    return 0


cdef int read_entries(int fd, uint64_t base, uint64_t size, uint64_t first_page,
                      Ranges *ranges) noexcept nogil:
    """The same for kernels before 6.7: an entry of 8 bytes for each page."""
    cdef uint64_t entries[ENTRIES_AT_ONCE]
    cdef uint64_t pages = size // PAGE
    cdef uint64_t done = 0
    cdef uint64_t some
    cdef uint64_t i
    cdef ssize_t got
    while done < pages:
        some = min(<uint64_t>ENTRIES_AT_ONCE, pages - done)
        got = pread(fd, entries, some * 8, (base // PAGE + done) * 8)
        if got <= 0:
            if got == 0:
                (&errno)[0] = EIO
            return -1
        some = got // 8
        split_huge(fd, entries, base // PAGE + done, some)
        for i in range(some):
            if private_entry(entries[i]):
                if append(ranges, first_page + done + i, 1) < 0:
                    return -1
        done += some
    return 0


cdef bint private_entry(uint64_t entry) noexcept nogil:
    return entry & PRESENT_OR_SWAPPED != 0 and entry & OF_A_FILE == 0


cdef void split_huge(int fd, uint64_t *entries, uint64_t page, uint64_t count) noexcept nogil:
    """Where all of a huge page looks private: ask again without it, if it was one of the file.

    Rights to a part of such a page make the kernel take it out of the page table, and the next
    access puts it back; 512 small private pages stay (mm/huge_memory.c, __split_huge_pmd_locked).
    """
    cdef uint64_t at = -page % HUGE_PAGES
    cdef uint64_t i
    cdef void *start
    while at + HUGE_PAGES <= count:
        i = 0
        while i < HUGE_PAGES and private_entry(entries[at + i]):
            i += 1
        if i == HUGE_PAGES:
            # SAFETY: the page is of the region that read_entries() was given, and nothing runs
            # that could write to it meanwhile.
            start = <void *>((page + at) * PAGE)
            mprotect(start, PAGE, PROT_READ)
            mprotect(start, PAGE, PROT_READ | PROT_WRITE)
            # Entries that are not read again stay what they were: copied in vain, never lost.
            pread(fd, &entries[at], HUGE_PAGES * 8, (page + at) * 8)
        at += HUGE_PAGES
