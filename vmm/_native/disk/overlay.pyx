"""Copy-on-write above a disk image. The image is only read; every write goes to the top layer."""

from libc.errno cimport EINVAL, EIO, ENOSPC, errno
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from cpython.ref cimport PyObject
from vmm._native.disk.iov cimport iovec
from vmm._native.disk.layer cimport CLUSTER, Layer

import os

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <fcntl.h>
    #include <linux/falloc.h>
    #include <pthread.h>
    #include <stdint.h>
    #include <sys/uio.h>
    #include <unistd.h>
    """
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_init(pthread_mutex_t *lock, void *attributes)
    int pthread_mutex_lock(pthread_mutex_t *lock) nogil
    int pthread_mutex_unlock(pthread_mutex_t *lock) nogil
    int FALLOC_FL_PUNCH_HOLE, FALLOC_FL_KEEP_SIZE
    int fallocate(int fd, int mode, int64_t offset, int64_t length) nogil
    int fdatasync(int fd) nogil
    ssize_t preadv(int fd, const iovec *iov, int count, int64_t offset) nogil
    ssize_t pwritev(int fd, const iovec *iov, int count, int64_t offset) nogil
    ssize_t pread(int fd, void *data, size_t length, int64_t offset) nogil
    ssize_t pwrite(int fd, const void *data, size_t length, int64_t offset) nogil

cdef enum:
    # Where a cluster is: an index of `below`, or one of these.
    IN_BASE = -1
    IN_TOP = -2
    # Buffers in one system call; what is left over is asked for again.
    PIECES = 64
    COPY_STEP = 256 * CLUSTER

DEPTH_LIMIT = DEPTH_MAX


cdef uint64_t total_of(const iovec *iov, int count) noexcept nogil:
    cdef uint64_t total = 0
    cdef int i
    for i in range(count):
        total += iov[i].iov_len
    return total


cdef int first_of(const iovec *iov, int count, uint64_t limit, iovec *pieces) noexcept nogil:
    # The first `limit` bytes, or as many as PIECES entries have.
    cdef int used = 0
    while used < count and used < PIECES and limit:
        pieces[used] = iov[used]
        if pieces[used].iov_len > limit:
            pieces[used].iov_len = limit
        limit -= pieces[used].iov_len
        used += 1
    return used


cdef class Overlay:
    """``size`` bytes of the open image ``base_fd`` (borrowed), with layers above it.

    ``make_layer()`` gives an empty one; ``layers`` are frozen ones of the same image, the oldest
    first; ``top`` goes on with a layer that was written before. freeze() and restore() belong to
    the control thread, while nobody reads or writes. read(), write() and clear() are for scripts
    and tests, on any thread.
    """

    def __cinit__(self, int base_fd, uint64_t size, make_layer, layers=(), Layer top=None):
        self.lock = malloc(sizeof(pthread_mutex_t))
        if self.lock == NULL:
            raise MemoryError
        pthread_mutex_init(<pthread_mutex_t *>self.lock, NULL)
        self.base_fd = base_fd
        self.size = size
        self.make_layer = make_layer
        self.set_chain(layers)
        self.top = make_layer() if top is None else top
        self.fits(self.top, False)

    def __dealloc__(self):
        free(self.lock)

    def fits(self, Layer layer not None, bint frozen):
        """ValueError unless it is one of this disk's layers, frozen or not."""
        if layer.size != self.size or layer.frozen != frozen:
            kind = "frozen" if layer.frozen else "growing"
            raise ValueError(f"a {kind} layer of a disk of {layer.size} bytes: not of this disk, "
                             f"which has {self.size}")

    cdef int set_chain(self, layers) except -1:
        cdef list kept = list(layers)
        if len(kept) > DEPTH_MAX:
            raise ValueError(f"{len(kept)} layers: at most {DEPTH_MAX} are possible")
        for layer in kept:
            self.fits(layer, True)
        # SAFETY: `kept` holds what `below` points to, and both change together.
        for i in range(len(kept)):
            self.below[i] = <void *><PyObject *>kept[i]
        self.depth = len(kept)
        self.kept = kept
        return 0

    @property
    def layers(self):
        """The frozen layers, the oldest first."""
        return tuple(self.kept)

    def freeze(self):
        """The disk as it is now, as layers for restore() or another Overlay; it goes on above.

        Costs nothing where nothing was written since the last time. At the limit of layers they
        are merged into one, which takes as long as copying what was written.
        """
        if self.top.written:
            self.top.freeze()
            chain = [*self.kept, self.top]
            if len(chain) > DEPTH_MAX:
                chain = [merge(chain, self.make_layer())]
                chain[0].freeze()
            fresh = self.make_layer()
            self.set_chain(chain)
            self.top = fresh
        return tuple(self.kept)

    def restore(self, layers):
        """The disk as freeze() gave it; what was written since is dropped."""
        if tuple(layers) != tuple(self.kept):
            self.set_chain(layers)
        if self.top.written:
            self.top = self.make_layer()

    cdef int source(self, uint64_t cluster) noexcept nogil:
        cdef int i = self.depth
        if self.top.has(cluster):
            return IN_TOP
        while i:
            i -= 1
            # SAFETY: i < depth, and `kept` keeps the layer alive.
            if (<Layer>self.below[i]).has(cluster):
                return i
        return IN_BASE

    cdef int64_t readv(self, const iovec *iov, int count, uint64_t offset) noexcept nogil:
        cdef iovec pieces[PIECES]
        cdef uint64_t length = total_of(iov, count)
        cdef uint64_t cluster = offset // CLUSTER
        cdef uint64_t end
        cdef int source
        cdef int fd = self.base_fd
        cdef ssize_t rc
        if offset > self.size or length > self.size - offset:
            return -EINVAL
        if length == 0:
            return 0
        source = self.source(cluster)
        end = (cluster + 1) * CLUSTER
        while end < offset + length and self.source(end // CLUSTER) == source:
            end += CLUSTER
        if source == IN_TOP:
            fd = self.top.fd
        elif source != IN_BASE:
            fd = (<Layer>self.below[source]).fd
        count = first_of(iov, count, min(end - offset, length), pieces)
        rc = preadv(fd, pieces, count, offset)
        return -errno if rc < 0 else rc

    cdef int64_t copy_up(self, uint64_t cluster) noexcept nogil:
        # A cluster of which only a part is about to be written: the rest comes from below.
        cdef char data[CLUSTER]
        cdef uint64_t start = cluster * CLUSTER
        cdef uint64_t length = min(<uint64_t>CLUSTER, self.size - start)
        cdef uint64_t done = 0
        cdef iovec piece
        cdef int64_t rc
        if self.top.has(cluster):
            return 0
        memset(data, 0, CLUSTER)
        while done < length:
            piece.iov_base = &data[done]
            piece.iov_len = length - done
            rc = self.readv(&piece, 1, start + done)
            if rc <= 0:
                return rc if rc < 0 else -EIO        # the image is shorter than it was
            done += rc
        done = 0
        while done < CLUSTER:
            rc = pwrite(self.top.fd, &data[done], CLUSTER - done, start + done)
            if rc <= 0:
                return -errno if rc < 0 else -ENOSPC
            done += rc
        self.top.add(cluster, cluster + 1)
        return 0

    cdef int64_t complete(self, uint64_t offset, uint64_t length) noexcept nogil:
        # The clusters of which the range has only a part. The last one's rest is nobody's.
        cdef uint64_t end = offset + length
        cdef int64_t rc = 0
        if offset % CLUSTER:
            rc = self.copy_up(offset // CLUSTER)
        if rc == 0 and end % CLUSTER and end != self.size:
            rc = self.copy_up(end // CLUSTER)
        return rc

    cdef int64_t writev(self, const iovec *iov, int count, uint64_t offset) noexcept nogil:
        cdef iovec pieces[PIECES]
        cdef uint64_t length = total_of(iov, count)
        cdef int64_t rc
        if offset > self.size or length > self.size - offset:
            return -EINVAL
        count = first_of(iov, count, length, pieces)
        length = total_of(pieces, count)
        if length == 0:
            return 0
        pthread_mutex_lock(<pthread_mutex_t *>self.lock)
        rc = self.write_locked(pieces, count, offset, length)
        pthread_mutex_unlock(<pthread_mutex_t *>self.lock)
        return rc

    cdef int64_t write_locked(self, const iovec *iov, int count, uint64_t offset,
                              uint64_t length) noexcept nogil:
        cdef uint64_t end
        cdef int64_t rc = self.complete(offset, length)
        if rc:
            return rc
        rc = pwritev(self.top.fd, iov, count, offset)
        if rc <= 0:
            return -errno if rc < 0 else -ENOSPC
        end = offset + rc
        if <uint64_t>rc < length and end % CLUSTER and not self.top.has(end // CLUSTER):
            # A part of a cluster that is not there yet does not count: it is written again.
            end -= end % CLUSTER
            if end <= offset:
                return -ENOSPC
        self.top.add(offset // CLUSTER, (end + CLUSTER - 1) // CLUSTER)
        return end - offset

    cdef int64_t zero(self, uint64_t offset, uint64_t length) noexcept nogil:
        cdef int64_t rc
        if offset > self.size or length > self.size - offset:
            return -EINVAL
        if length == 0:
            return 0
        pthread_mutex_lock(<pthread_mutex_t *>self.lock)
        rc = self.zero_locked(offset, length)
        pthread_mutex_unlock(<pthread_mutex_t *>self.lock)
        return rc

    cdef int64_t zero_locked(self, uint64_t offset, uint64_t length) noexcept nogil:
        cdef uint64_t end = offset + length
        cdef int64_t rc = self.complete(offset, length)
        if rc:
            return rc
        if fallocate(self.top.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length) < 0:
            return -errno
        self.top.add(offset // CLUSTER, (end + CLUSTER - 1) // CLUSTER)
        return 0

    cdef int64_t flush(self) noexcept nogil:
        return -errno if fdatasync(self.top.fd) < 0 else 0

    cdef int script(self, int write, char *data, uint64_t length, uint64_t offset) except -1:
        cdef uint64_t done = 0
        cdef int64_t rc = 0
        cdef iovec piece
        with nogil:
            while done < length and rc >= 0:
                piece.iov_base = &data[done]
                piece.iov_len = length - done
                rc = (self.writev(&piece, 1, offset + done) if write
                      else self.readv(&piece, 1, offset + done))
                if rc == 0:
                    rc = -EIO
                done += rc if rc > 0 else 0
        if rc < 0:
            raise_errno(-rc, offset, length)
        return 0

    def read(self, uint64_t offset, uint64_t length):
        """A copy of what the guest would read; OSError."""
        if length > self.size:
            raise_errno(EINVAL, offset, length)
        found = bytearray(length)
        self.script(0, found, length, offset)
        return bytes(found)

    def write(self, uint64_t offset, bytes data not None):
        """As the guest would write; OSError."""
        self.script(1, data, len(data), offset)

    def clear(self, uint64_t offset, uint64_t length):
        """Reads as zeroes afterwards; OSError."""
        cdef int64_t rc = self.zero(offset, length)
        if rc < 0:
            raise_errno(-rc, offset, length)

    def sync(self):
        """All of it on the host's disk, where the layer is a file there; OSError."""
        cdef int64_t rc
        with nogil:
            rc = self.flush()
        if rc < 0:
            raise_errno(-rc, 0, self.size)


cdef int raise_errno(int code, offset, length) except -1:
    raise OSError(code, f"{os.strerror(code)}: [{offset}, {offset + length}) of the disk")


def merge(layers, Layer into not None):
    """``into``, filled with what the layers together have, the oldest first. OSError."""
    for layer in layers:
        for offset, length in (<Layer?>layer).extents():
            for start in range(offset, offset + length, COPY_STEP):
                part = min(COPY_STEP, offset + length - start)
                into.fill(start, read_all((<Layer>layer).fd, start, part))
    return into


cdef bytes read_all(int fd, uint64_t offset, uint64_t length):
    data = os.pread(fd, length, offset)
    if len(data) != length:
        raise_errno(EIO, offset, length)
    return data
