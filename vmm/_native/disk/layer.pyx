"""Layers of a disk. Their files are sparse: a cluster that was never written takes no space."""

from libc.stdint cimport uint8_t, uint64_t
from posix.types cimport off_t
from posix.unistd cimport close as c_close, ftruncate

from vmm._native.host.fd cimport check

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <stdint.h>
    #include <sys/mman.h>
    #include <unistd.h>
    static int vmm_bit(const uint8_t *bits, uint64_t n) {
        return __atomic_load_n(&bits[n >> 3], __ATOMIC_ACQUIRE) >> (n & 7) & 1;
    }
    /* After what it stands for: a reader of another queue sees both or neither. */
    static int vmm_set_bit(uint8_t *bits, uint64_t n) {
        uint8_t mask = (uint8_t)(1u << (n & 7));
        return !(__atomic_fetch_or(&bits[n >> 3], mask, __ATOMIC_RELEASE) & mask);
    }
    static int vmm_pwrite_all(int fd, const char *data, size_t length, uint64_t offset) {
        while (length) {
            ssize_t done = pwrite(fd, data, length, (off_t)offset);
            if (done <= 0) return -1;
            data += done; length -= (size_t)done; offset += (uint64_t)done;
        }
        return 0;
    }
    """
    int vmm_bit(const uint8_t *bits, uint64_t n) nogil
    int vmm_set_bit(uint8_t *bits, uint64_t n) nogil
    int vmm_pwrite_all(int fd, const char *data, size_t length, uint64_t offset)
    int PROT_READ, PROT_WRITE, MAP_SHARED, MAP_PRIVATE, MAP_ANONYMOUS, MAP_NORESERVE
    void *MAP_FAILED
    void *mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset)
    int munmap(void *addr, size_t length)

CLUSTER_BYTES = CLUSTER


def bits_bytes(uint64_t size):
    """Bytes of the bits of a disk of ``size`` bytes, in whole pages."""
    return (((size + CLUSTER - 1) // CLUSTER + 7) // 8 + 4095) // 4096 * 4096


cdef class Layer:
    """A layer of a disk of ``size`` bytes over the file ``fd``, which it closes in the end.

    ``bits_at``: where in the file the bits lie, in space that is there (a hole there could kill us
    when the disk is full); -1: in memory, and the file begins empty.
    """

    def __cinit__(self, int fd, uint64_t size, off_t bits_at=-1):
        cdef int kind = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE
        cdef void *found
        self.fd = -1
        if not 0 < size < <uint64_t>1 << 62:
            raise ValueError(f"a disk of {size} bytes")
        self.size = size
        self.clusters = (size + CLUSTER - 1) // CLUSTER
        self.bits_length = bits_bytes(size)
        if bits_at < 0:
            check(ftruncate(fd, self.clusters * CLUSTER), b"ftruncate of a disk's layer")
        else:
            kind = MAP_SHARED
        found = mmap(NULL, self.bits_length, PROT_READ | PROT_WRITE, kind,
                     -1 if bits_at < 0 else fd, 0 if bits_at < 0 else bits_at)
        if found == MAP_FAILED:
            check(-1, b"mmap of a disk's layer")
        self.bits = <uint8_t *>found
        if bits_at >= 0:
            self.written = self.count()
        self.fd = fd

    def __dealloc__(self):
        if self.bits != NULL:
            munmap(self.bits, self.bits_length)
        if self.fd >= 0:
            c_close(self.fd)

    cdef uint64_t count(self) noexcept nogil:
        cdef uint64_t cluster
        cdef uint64_t found = 0
        for cluster in range(self.clusters):
            found += self.has(cluster)
        return found

    cdef bint has(self, uint64_t cluster) noexcept nogil:
        return vmm_bit(self.bits, cluster)

    cdef void add(self, uint64_t first, uint64_t end) noexcept nogil:
        cdef uint64_t cluster
        for cluster in range(first, end):
            self.written += vmm_set_bit(self.bits, cluster)

    def freeze(self):
        """From now on it can be shared."""
        self.frozen = True

    def extents(self):
        """(offset, length) in bytes of each run of clusters that it has, ascending."""
        cdef uint64_t cluster = 0
        cdef uint64_t first
        while cluster < self.clusters:
            if self.bits[cluster >> 3] == 0:
                cluster = (cluster | 7) + 1
                continue
            first = cluster
            while cluster < self.clusters and self.has(cluster):
                cluster += 1
            if cluster > first:
                yield first * CLUSTER, (cluster - first) * CLUSTER
            else:
                cluster += 1

    def fill(self, uint64_t offset, bytes data):
        """Whole clusters of a layer that is being made (loaded, merged); ValueError for others."""
        cdef uint64_t length = len(data)
        if self.frozen or offset % CLUSTER or length % CLUSTER:
            raise ValueError(f"{length} bytes at {offset}: not whole clusters, or it is frozen")
        if offset > self.clusters * CLUSTER or length > self.clusters * CLUSTER - offset:
            raise ValueError(f"[{offset}, {offset + length}) is outside the disk")
        if vmm_pwrite_all(self.fd, <const char *>data, length, offset) < 0:
            check(-1, b"pwrite of a disk's layer")
        self.add(offset // CLUSTER, (offset + length) // CLUSTER)
