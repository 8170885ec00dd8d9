"""The memory of a ring of exits, and its reader's half. The writer's is in tracering.pxd.

Source: Documentation/core-api/circular-buffers.rst, for one producer and one consumer.
"""

from libc.errno cimport ENOMEM
from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from cpython.buffer cimport PyBUF_CONTIG, PyBUF_CONTIG_RO
from cpython.buffer cimport PyBuffer_Release, PyObject_GetBuffer
from cpython.pycapsule cimport PyCapsule_New

from vmm._native.kvm.tracering cimport *

from vmm._native.host.fd import IoctlError

RECORD_SIZE = sizeof(TraceRecord)
SIZE_MAX = 1 << 26
NO_RIP = RIP_NONE
SYNC_RIP = RIP_SYNC
IOCTL_RIP = RIP_IOCTL
FAILED = RUN_FAILED

cdef enum:
    CLOCK_TRIES = 8


def rip_mode(vm):
    """How rip comes into the records of a VmFd's vCPUs: by what KVM leaves behind, else by a call
    at each exit."""
    offered = vm.check_extension(KVM_CAP_SYNC_REGS)
    return SYNC_RIP if offered & KVM_SYNC_X86_REGS else IOCTL_RIP


cdef class TraceRing:
    """Room for ``size`` records (a power of two, 64 bytes each) of one vCPU's exits.

    One thread at a time reads. ``rip``: NO_RIP, SYNC_RIP or IOCTL_RIP. Memory is taken from the
    host as it is first written.
    """

    cdef Ring ring
    cdef bint taken

    def __cinit__(self, size, int rip=RIP_NONE):
        if size < 2 or size > SIZE_MAX or size & (size - 1):
            raise ValueError(f"a ring of {size} records: a power of two from 2 to {SIZE_MAX}")
        self.ring.records = <TraceRecord *>calloc(size, sizeof(TraceRecord))
        if self.ring.records == NULL:
            raise IoctlError(ENOMEM, f"memory for a ring of {size} records")
        self.ring.mask = size - 1
        self.ring.rip_mode = rip

    def __dealloc__(self):
        free(self.ring.records)

    def take(self, int vcpu):
        """For VcpuLoop.set_trace(): the ring as a capsule, once; ``vcpu`` goes into each record."""
        if self.taken:
            raise ValueError("a ring is one vCPU's, and for one set_trace(): make another")
        self.taken = True
        self.ring.vcpu = vcpu
        return PyCapsule_New(&self.ring, RING_NAME, NULL)

    @property
    def written(self):
        """Records put into it since it was made."""
        return acquire(&self.ring.head)

    @property
    def dropped(self):
        """Exits that found it full."""
        return acquire(&self.ring.dropped)

    @property
    def waiting(self):
        """Records that wait for the reader."""
        return acquire(&self.ring.head) - self.ring.tail

    def read_into(self, target):
        """Move the oldest records into ``target`` (writable bytes); how many fitted and were there.
        """
        cdef Py_buffer view
        cdef uint64_t head = acquire(&self.ring.head)
        cdef uint64_t tail = self.ring.tail
        cdef uint64_t count
        cdef uint64_t first
        PyObject_GetBuffer(target, &view, PyBUF_CONTIG)
        try:
            count = min(head - tail, <uint64_t>view.len // sizeof(TraceRecord))
            # SAFETY: count records are between tail and head and fit into the buffer; those that
            # lie behind the ring's end are at its beginning.
            first = min(count, self.ring.mask + 1 - (tail & self.ring.mask))
            memcpy(view.buf, &self.ring.records[tail & self.ring.mask],
                   first * sizeof(TraceRecord))
            memcpy(<TraceRecord *>view.buf + first, self.ring.records,
                   (count - first) * sizeof(TraceRecord))
            # Only now may the writer use their places again.
            release(&self.ring.tail, tail + count)
        finally:
            PyBuffer_Release(&view)
        return count

    def put(self, records):
        """Write ``records`` (bytes) as a vCPU would, one by one, without the GIL; for tests and
        scripts, and never for a ring that a vCPU has."""
        cdef Py_buffer view
        cdef uint64_t count
        cdef uint64_t i
        if self.taken:
            raise ValueError("this ring is a vCPU's: only the vCPU writes to it")
        PyObject_GetBuffer(records, &view, PyBUF_CONTIG_RO)
        try:
            count = view.len // sizeof(TraceRecord)
            with nogil:
                for i in range(count):
                    ring_put(&self.ring, <TraceRecord *>view.buf + i)
        finally:
            PyBuffer_Release(&view)


def tsc_now():
    """(TSC, CLOCK_MONOTONIC in ns) of one moment: of a few tries, the one that was done fastest."""
    cdef timespec now
    cdef uint64_t before
    cdef uint64_t after
    cdef uint64_t best = <uint64_t>-1
    found = (0, 0)
    for _ in range(CLOCK_TRIES):
        before = tsc()
        clock_gettime(CLOCK_MONOTONIC, &now)
        after = tsc()
        if after - before < best:
            best = after - before
            found = (before + best // 2, now.tv_sec * 1_000_000_000 + now.tv_nsec)
    return found
