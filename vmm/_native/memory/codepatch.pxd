"""Bytes of ours in place of the guest's code, while it runs."""

from libc.stdint cimport uint8_t, uint64_t

from vmm._native.memory.guestmem cimport GuestMemory

cdef enum:
    PATCH_MAX = 2                # bytes

    OUT                          # the guest's memory is the guest's
    IN                           # our code is there, `kept` is the guest's
    LIFTED                       # the guest's again, while one vCPU steps over it

cdef class Patch:
    cdef GuestMemory memory
    cdef readonly uint64_t gpa
    cdef readonly int length
    cdef uint8_t ours[PATCH_MAX]
    cdef uint8_t kept[PATCH_MAX]
    cdef public int users        # how many want it there
    cdef int place

    # Any thread, while no other writes there. The guest may: what it writes stays.
    cdef void put_in(self) noexcept nogil
    cdef void take_away(self) noexcept nogil
    cdef void lift(self) noexcept nogil
    cdef void drop(self) noexcept nogil
    cdef int skipped(self) noexcept nogil
