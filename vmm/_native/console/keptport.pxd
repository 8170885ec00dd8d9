"""A console whose output stays in this process's memory, for scripts."""

from libc.stdint cimport int64_t, uint8_t, uint64_t

from vmm._native.console.byteport cimport BytePort
from vmm._native.kvm.runloop cimport VcpuLoop

cdef class KeptPort(BytePort):
    cdef uint8_t *kept
    cdef size_t kept_size        # bytes kept
    cdef size_t kept_room        # bytes allocated
    cdef readonly size_t limit
    cdef uint64_t kept_start     # position of the first one among all that the guest ever wrote
    cdef uint8_t *typed          # input that found no room yet
    cdef size_t typed_size
    cdef int armed               # the next output interrupts `loop` and wakes `ready_fd`
    cdef int64_t armed_ms
    cdef VcpuLoop loop

    cdef bint grow(self, size_t size) noexcept nogil
    cdef void keep(self, const uint8_t *data, size_t length) noexcept nogil
    cdef void feed(self) noexcept nogil
    cdef int append(self, bytes data) except -1
