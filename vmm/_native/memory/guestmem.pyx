"""Guest RAM as host memory: mapping, bounds-checked translation, buffers for Python.

Each region is mapped once, and lies to 2 MiB (a large one to 1 GiB) as its guest physical addresses
do, so that huge pages can serve both. A guest physical address (gpa) becomes a host virtual one
(hva) in one function, which checks bounds.
"""

from libc.errno cimport errno
from libc.stdint cimport uint64_t, uintptr_t
from libc.string cimport memcpy
from posix.types cimport off_t
from posix.unistd cimport close as c_close, ftruncate

from cpython.buffer cimport (
    PyBUF_SIMPLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer,
)
from vmm._native.host.confine cimport KIND_PREFAULT
from vmm._native.host.fd cimport check
from vmm._native.host.thread cimport Thread, thread_join, thread_start
from vmm._native.memory.ramfile cimport (
    vmm_dup_mount, vmm_huge_again, vmm_huge_file, vmm_huge_settle, vmm_memfd, vmm_shmem_policy,
)

import os

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <sys/mman.h>
    #include <sys/syscall.h>
    #include <unistd.h>
    #include <linux/mempolicy.h>
    #ifndef MADV_POPULATE_WRITE
    #define MADV_POPULATE_WRITE 23
    #endif
    static long vmm_mbind(void *start, unsigned long len, unsigned long node) {
        unsigned long mask[16] = {0};
        mask[node / 64] = 1UL << (node % 64);
        return syscall(SYS_mbind, start, len, MPOL_BIND, mask, 1024UL,
                       MPOL_MF_STRICT | MPOL_MF_MOVE);
    }
    """
    int MADV_HUGEPAGE, MADV_MERGEABLE, MADV_DONTDUMP, MADV_DONTFORK, MADV_POPULATE_WRITE
    int PROT_NONE, PROT_READ, PROT_WRITE
    int MAP_SHARED, MAP_PRIVATE, MAP_ANONYMOUS, MAP_NORESERVE, MAP_FIXED
    void *MAP_FAILED
    void *mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset)
    int munmap(void *addr, size_t length)
    int madvise(void *addr, size_t length, int advice) nogil
    long vmm_mbind(void *start, unsigned long len, unsigned long node)

cdef enum:
    PAGE = 4096
    MAPPING_ALIGNMENT = 2 << 20
    LARGE_ALIGNMENT = 1 << 30
    MAX_NODES = 1024
    MAX_PREFAULT_THREADS = 16

cdef struct PrefaultJob:
    char *start
    size_t length
    int error


cdef void prefault_main(void *arg) noexcept nogil:
    cdef PrefaultJob *job = <PrefaultJob *>arg
    if madvise(job.start, job.length, MADV_POPULATE_WRITE) < 0:
        job.error = errno


cdef class GuestView:
    """One stretch of guest RAM as a writable buffer; keeps the mapping alive while it is used."""

    cdef GuestMemory memory
    cdef char *start
    cdef Py_ssize_t length

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.start, self.length, 0, flags)
        self.memory.exports += 1

    def __releasebuffer__(self, Py_buffer *buffer):
        self.memory.exports -= 1
        if self.memory.closed:
            self.memory.unmap()


cdef class GuestMemory:
    """The guest's RAM.

    ``regions`` is a list of (gpa, size) in bytes, page aligned, not overlapping. With ``shared``
    or ``hugepage_size`` the memory is one file for all regions (the second region starts in it
    where the first ends), else private anonymous memory. The file is a memfd, or one of a tmpfs
    of our own where only that gives shared memory huge pages (``thp``). With ``base`` it is
    private memory over a file that nobody writes: ``base`` has ``fd`` and ``offset``, and is kept.
    ``again``: (dup_mount(), refused) of RAM before it, where no file system can be made any more.
    Raises IoctlError when the host refuses.
    """

    def __cinit__(self):
        self.count = 0
        self.exports = 0
        self.closed = False
        self.owned_fd = -1
        self.rest[0] = self.rest[1] = self.rest[2] = -1

    def __init__(self, regions, *, bint shared=False, unsigned long hugepage_size=0,
                 bint mergeable=False, bint thp=True, base=None, again=None):
        cdef int fd = -1
        cdef uint64_t offset = 0
        check_regions(regions, hugepage_size or PAGE)
        self.file_kind = ANONYMOUS
        self.base = base
        self.hugepage_size = hugepage_size
        self.thp = thp and not hugepage_size
        if base is not None:
            fd, offset = base.fd, base.offset
        elif shared or hugepage_size:
            fd = self.open_file(sum([size for _, size in regions]), again)
        try:
            for gpa, size in regions:
                self.map_region(gpa, size, fd, offset)
                offset += size
        except BaseException:
            self.unmap()
            raise
        self.advise(mergeable)

    @staticmethod
    def anonymous(regions):
        """Private memory for tests and scripts: the same as ``GuestMemory(regions)``."""
        return GuestMemory(regions)

    def __dealloc__(self):
        self.unmap()

    cdef int open_file(self, uint64_t size, again) except -1:
        """The file for shared memory: huge pages where the host gives them, else a memfd."""
        cdef const char *step = NULL
        cdef int error = 0
        cdef char policy = vmm_shmem_policy() if self.thp else 0
        if self.hugepage_size:
            self.file_kind = HUGETLB
        elif self.thp and policy in (b"a", b"w", b"f"):
            self.file_kind = HUGE_MEMFD
        elif self.thp and policy != b"d" and again is not None:
            self.owned_fd = vmm_huge_again(again[0])
            self.file_kind = MEMFD if self.owned_fd < 0 else TMPFS
            self.refused = again[1]
        elif self.thp and policy != b"d":
            self.owned_fd = vmm_huge_file(self.rest, &step, &error)
            self.file_kind = MEMFD if self.owned_fd < 0 else TMPFS
        else:
            self.file_kind = MEMFD
        if self.owned_fd < 0:
            self.owned_fd = check(vmm_memfd(self.hugepage_size), b"memfd_create of guest RAM")
            if step != NULL:
                self.settle()
                why = os.strerror(error) if error else "the process that tried was killed"
                self.refused = f"{step.decode()}: {why}"
            elif policy == b"d":
                self.refused = "shmem_enabled is deny"
        check(ftruncate(self.owned_fd, size), b"ftruncate of guest RAM")
        return self.owned_fd

    cdef int map_region(self, uint64_t gpa, uint64_t size, int fd, uint64_t offset) except -1:
        cdef size_t alignment = max(self.hugepage_size, <unsigned long>MAPPING_ALIGNMENT)
        cdef int kind = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE
        cdef char *reserved
        cdef char *start
        cdef char *got
        if size >= LARGE_ALIGNMENT:
            alignment = max(alignment, <size_t>LARGE_ALIGNMENT)
        elif size < MAPPING_ALIGNMENT and not self.hugepage_size:
            alignment = PAGE
        reserved = <char *>mmap(NULL, size + alignment, PROT_NONE,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        if <void *>reserved == MAP_FAILED:
            check(-1, b"mmap of guest RAM")
        # The first address that lies to the alignment as the gpa does: a huge page then serves
        # both. Pages of hugetlbfs lie by their own size.
        start = reserved + (((0 if self.hugepage_size else gpa) - <uintptr_t>reserved)
                            & (<uintptr_t>alignment - 1))
        if self.base is not None:
            kind = MAP_PRIVATE | MAP_NORESERVE
        elif fd >= 0:
            # Huge pages are reserved now: one that another VM took meanwhile is a SIGBUS later.
            kind = MAP_SHARED if self.hugepage_size else MAP_SHARED | MAP_NORESERVE
        got = <char *>mmap(start, size, PROT_READ | PROT_WRITE, kind | MAP_FIXED, fd, offset)
        if <void *>got == MAP_FAILED:
            code = errno
            munmap(reserved, size + alignment)
            (&errno)[0] = code
            check(-1, b"mmap of guest RAM")
        # What the alignment left over on both sides goes back.
        if start > reserved:
            munmap(reserved, start - reserved)
        munmap(start + size, alignment - (start - reserved))
        self.table[self.count] = Region(gpa, size, start)
        self.count += 1
        return 0

    cdef void advise(self, bint mergeable) noexcept:
        cdef size_t skip
        # Advice only: a kernel built without one of these runs the guest all the same.
        for i in range(self.count):
            madvise(self.table[i].hva, self.table[i].size, MADV_DONTDUMP)
            madvise(self.table[i].hva, self.table[i].size, MADV_DONTFORK)
            if self.thp:
                # Not the lowest part: a boot touches a few pages there (tables, parameters), for
                # which a huge one would be zeroed first, and compaction may take 10 ms to find it.
                skip = min(<size_t>MAPPING_ALIGNMENT, self.table[i].size) if i == 0 else 0
                madvise(self.table[i].hva + skip, self.table[i].size - skip, MADV_HUGEPAGE)
            if mergeable:
                madvise(self.table[i].hva, self.table[i].size, MADV_MERGEABLE)

    cdef char *hva(self, uint64_t gpa, uint64_t length) noexcept nogil:
        cdef int i
        cdef uint64_t offset
        # SAFETY: gpa >= start and length <= size - offset, both without overflow, so the whole
        # of [gpa, gpa + length) lies in this mapping.
        for i in range(self.count):
            if gpa >= self.table[i].gpa:
                offset = gpa - self.table[i].gpa
                if offset < self.table[i].size and 0 < length <= self.table[i].size - offset:
                    return self.table[i].hva + offset
        return NULL

    cdef char *require(self, gpa, length) except NULL:
        cdef char *found = NULL
        if not self.closed and 0 <= gpa < 1 << 64 and 0 < length < 1 << 63:
            found = self.hva(gpa, length)
        if found == NULL:
            what = "closed guest memory" if self.closed else f"guest RAM {self.describe()}"
            raise ValueError(f"[{gpa:#x}, {gpa + length:#x}) is not inside {what}")
        return found

    def describe(self):
        """The regions as text for messages."""
        return ", ".join([f"[{gpa:#x}, {gpa + size:#x})" for gpa, size in self.regions])

    @property
    def regions(self):
        """(gpa, size) of each region, in bytes."""
        return [(self.table[i].gpa, self.table[i].size) for i in range(self.count)]

    @property
    def fd(self):
        """The memfd of shared memory, which it keeps; -1 for private memory."""
        return self.owned_fd

    @property
    def slots(self):
        """(gpa, size, host address) of each region: what KVM_SET_USER_MEMORY_REGION wants."""
        return [(self.table[i].gpa, self.table[i].size, <uintptr_t>self.table[i].hva)
                for i in range(self.count)]

    @property
    def backing(self):
        """What holds it: "anonymous" memory, a "memfd", a file of a "tmpfs" or of "hugetlb", or
        a "snapshot"'s file with private pages over it."""
        if self.base is not None:
            return "snapshot"
        return ("anonymous", "memfd", "memfd", "tmpfs", "hugetlb")[self.file_kind]

    @property
    def huge(self):
        """Whether the host may give shared memory in huge pages, and private memory was advised
        to have them; a snapshot's is written in small ones."""
        if self.base is not None:
            return False
        return self.thp if self.file_kind == ANONYMOUS else self.file_kind >= HUGE_MEMFD

    @property
    def size(self):
        """All RAM in bytes."""
        return sum([self.table[i].size for i in range(self.count)])

    def view(self, gpa, length):
        """A writable memoryview of [gpa, gpa + length); ValueError unless inside one region."""
        cdef GuestView view = GuestView()
        view.start = self.require(gpa, length)
        view.length = length
        view.memory = self
        return memoryview(view)

    def numpy(self, gpa, length, dtype="uint8"):
        """[gpa, gpa + length) as a numpy array that shares the guest's memory."""
        import numpy

        return numpy.frombuffer(self.view(gpa, length), dtype=dtype)

    def read(self, gpa, length):
        """A copy of ``length`` bytes at ``gpa``; ValueError unless inside one region."""
        if length == 0:
            return b""
        return self.require(gpa, length)[:<Py_ssize_t>length]

    def write(self, gpa, data):
        """Copy ``data`` to ``gpa``; ValueError unless it fits in one region."""
        # No typed memoryview: Cython's imports `collections`, which the start cannot afford.
        cdef Py_buffer buffer
        PyObject_GetBuffer(data, &buffer, PyBUF_SIMPLE)
        try:
            if buffer.len:
                # SAFETY: require() has checked [gpa, gpa + len(data)).
                memcpy(self.require(gpa, buffer.len), buffer.buf, buffer.len)
        finally:
            PyBuffer_Release(&buffer)

    def bind_node(self, int node):
        """Allocate all pages from one NUMA node of the host (mbind, MPOL_BIND, strict)."""
        if not 0 <= node < MAX_NODES:
            raise ValueError(f"NUMA node {node} is outside 0..{MAX_NODES - 1}")
        for i in range(self.count):
            check(vmm_mbind(self.table[i].hva, self.table[i].size, node), b"mbind of guest RAM")

    def prefault(self, int threads):
        """Touch every page now, with up to 16 native threads; raises IoctlError when refused."""
        cdef int i
        threads = max(1, min(threads, MAX_PREFAULT_THREADS))
        for i in range(self.count):
            populate(self.table[i].hva, self.table[i].size, threads)

    def prefault_range(self, gpa, length, int threads):
        """prefault() for [gpa, gpa + length), whole pages; ValueError unless in one region."""
        threads = max(1, min(threads, MAX_PREFAULT_THREADS))
        # SAFETY: require() has checked [gpa, gpa + length).
        populate(self.require(gpa, length), length, threads)

    def dup_mount(self):
        """A descriptor of its file's own file system, the caller's to close; -1: it has none, or
        settle() came first."""
        return vmm_dup_mount(self.rest)

    def settle(self):
        """Clear away what making the file left over, which may wait for the host's processors:
        once the guest runs. Control thread; idempotent."""
        with nogil:
            vmm_huge_settle(self.rest)

    def close(self):
        """Unmap; waits for no one: while a view is in use the mapping stays until it is gone."""
        self.closed = True
        self.unmap()

    cdef void unmap(self) noexcept:
        if self.exports:
            return
        vmm_huge_settle(self.rest)
        for i in range(self.count):
            munmap(self.table[i].hva, self.table[i].size)
        if self.owned_fd >= 0:
            c_close(self.owned_fd)
            self.owned_fd = -1
        self.base = None
        self.count = 0
        self.closed = True


cdef int populate(char *start, size_t size, int threads) except -1:
    cdef Thread workers[MAX_PREFAULT_THREADS]
    cdef PrefaultJob jobs[MAX_PREFAULT_THREADS]
    cdef size_t share = ((size // threads) + PAGE - 1) & ~(<size_t>PAGE - 1)
    cdef size_t done = 0
    cdef int i
    cdef int used = 0
    cdef int code = 0
    while done < size:
        jobs[used] = PrefaultJob(start + done, min(share, size - done), 0)
        done += jobs[used].length
        used += 1
    with nogil:
        for i in range(used):
            workers[i].started = False
            if i == used - 1 or thread_start(
                    &workers[i], KIND_PREFAULT, b"prefault", prefault_main, &jobs[i]):
                prefault_main(&jobs[i])     # the last share, or no thread to be had: do it here
        for i in range(used):
            thread_join(&workers[i])
            code = code or jobs[i].error
    if code:
        (&errno)[0] = code
        check(-1, b"madvise(MADV_POPULATE_WRITE) of guest RAM")
    return 0


def check_regions(regions, page):
    """Refuse a region table that could not be mapped: too many, overlapping, unaligned, empty."""
    if not 0 < len(regions) <= MAX_REGIONS:
        raise ValueError(f"{len(regions)} RAM regions: 1 to {MAX_REGIONS} are possible")
    end = 0
    for gpa, size in regions:
        if size <= 0 or size % page or gpa % PAGE or gpa < end or gpa + size > 1 << 52:
            raise ValueError(
                f"RAM region [{gpa:#x}, {gpa + size:#x}): must be a multiple of {page} bytes, "
                "in ascending order, below 2^52 and free of overlap")
        end = gpa + size
