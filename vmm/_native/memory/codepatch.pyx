"""Bytes of ours in place of the guest's code, while it runs: what software breakpoints are made of.
"""

from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcmp, memcpy

from vmm._native.memory.guestmem cimport GuestMemory

cdef enum:
    PAGE = 4096
    LONGEST = 8                  # of the instructions that skipped() knows


cdef class Patch:
    """``code`` (1 or 2 bytes) in place of what stands at ``gpa``, while it is in.

    ``original`` is what it stands for, None while it is not in; ``overwritten`` says that the guest
    has written there since. ValueError when it is not inside guest RAM.
    """

    def __cinit__(self, GuestMemory memory, gpa, bytes code):
        if not 0 < len(code) <= PATCH_MAX:
            raise ValueError(f"a patch of {len(code)} bytes: 1 to {PATCH_MAX}")
        memory.require(gpa, len(code))
        self.memory = memory
        self.gpa = gpa
        self.length = len(code)
        memcpy(self.ours, <const char *>code, self.length)
        self.place = OUT

    @property
    def code(self):
        """Ours."""
        return self.ours[:self.length]

    @property
    def original(self):
        """The guest's bytes behind it; None while it is not in."""
        return self.kept[:self.length] if self.place == IN else None

    @property
    def overwritten(self):
        """It was put in, and something else stands there."""
        cdef char *hva = self.memory.require(self.gpa, self.length)
        return self.place == IN and memcmp(hva, self.ours, self.length) != 0

    def put(self):
        """Into the guest's memory, over what stands there now."""
        self.memory.require(self.gpa, self.length)
        self.put_in()

    def take_out(self):
        """Out of it; what the guest wrote over it stays."""
        self.memory.require(self.gpa, self.length)
        self.take_away()

    def forget(self):
        """The memory was replaced, and it is not in."""
        self.place = OUT

    cdef void put_in(self) noexcept nogil:
        # SAFETY: hva() gives memory of `length` bytes, or NULL when it was closed.
        cdef uint8_t *hva = <uint8_t *>self.memory.hva(self.gpa, self.length)
        if hva == NULL or self.place == IN:
            return
        memcpy(self.kept, hva, self.length)
        memcpy(hva, self.ours, self.length)
        self.place = IN

    cdef void take_away(self) noexcept nogil:
        # SAFETY: as in put_in().
        cdef uint8_t *hva = <uint8_t *>self.memory.hva(self.gpa, self.length)
        cdef int i
        if hva != NULL and self.place == IN:
            for i in range(self.length):
                if hva[i] == self.ours[i]:
                    hva[i] = self.kept[i]
        self.place = OUT

    cdef void lift(self) noexcept nogil:
        """Out for one step: drop() puts it back, unless somebody took it away meanwhile."""
        if self.place == IN:
            self.take_away()
            self.place = LIFTED

    cdef void drop(self) noexcept nogil:
        if self.place == LIFTED:
            self.put_in()

    cdef int skipped(self) noexcept nogil:
        """How long the instruction behind it is, if it does nothing: a NOP such as kernels have at
        the entries of functions, in 32- or 64-bit code. Else 0."""
        cdef uint8_t code[LONGEST]
        cdef int length
        cdef uint64_t there = min(<uint64_t>LONGEST, PAGE - (self.gpa & (PAGE - 1)))
        # SAFETY: hva() has checked [gpa, gpa + there), which is at most `code`.
        cdef uint8_t *hva = <uint8_t *>self.memory.hva(self.gpa, there)
        if hva == NULL or self.place != IN or there < LONGEST:
            return 0
        memcpy(code, hva, LONGEST)
        if memcmp(code, self.ours, self.length):
            return 0
        memcpy(code, self.kept, self.length)
        length = idle_length(code)
        # Of a shorter one the next instruction is under the patch, too.
        return length if length >= self.length else 0


cdef int idle_length(const uint8_t *code) noexcept nogil:
    # Source: SDM 2B, NOP. Not ENDBR64: with CET the processor waits for it.
    cdef int at = 1 if code[0] == 0x66 else 0
    if not at and code[0] == 0x90:
        return 1
    if code[at] != 0x0f or code[at + 1] != 0x1f:
        return 0
    if code[at + 2] == 0x00:
        return at + 3
    if code[at + 2] == 0x40 or code[at + 2] == 0x44 and code[at + 3] == 0x00:
        return at + (4 if code[at + 2] == 0x40 else 5)
    if code[at + 2] == 0x80:
        return at + 7
    return 0
