"""Decides without Python whether a vCPU that hit a breakpoint stands still."""

from libc.stdint cimport uint32_t, uint64_t

from cpython.ref cimport PyObject

from vmm._native.kvm.gate cimport DebugExit, Gate
from vmm._native.linux.kvm cimport kvm_guest_debug, kvm_regs

cdef enum:
    SLOTS = 4                    # DR0 to DR3

# Conditions number first to first + count - 1 of the table are those of the points there.
cdef struct Group:
    int first
    int count

cdef struct Slot:
    uint64_t address
    bint is_watch
    Group group

cdef struct Site:
    uint64_t address             # linear
    PyObject *patch              # NULL: every instruction is looked at, this one too
    Group group

cdef class PointTable:
    cdef Slot slots[SLOTS]
    cdef int slot_count
    cdef Site *sites             # ascending
    cdef int site_count
    cdef PyObject **conditions   # NULL: Python has to be asked
    cdef int condition_count
    cdef kvm_guest_debug running
    cdef kvm_guest_debug stepping
    cdef bint wants_system       # some condition names a system register
    cdef bint steps              # every instruction stops
    cdef readonly bint alone     # no other vCPU: a patch may go while this one steps over it
    cdef readonly bint resume_flag
    cdef readonly int stop_port
    cdef list kept               # whatever the pointers point to

    cdef Group group_of(self, conditions)
    cdef Site *find(self, uint64_t address) noexcept nogil
    cdef bint all_false(self, Group group, const uint64_t *registers) noexcept nogil
    cdef void pass_by(self, Group group) noexcept nogil

cdef class PointGate:
    cdef Gate form
    cdef PointTable table
    cdef public bint active
    cdef bint stepping           # one instruction, to leave a breakpoint
    cdef PyObject *lifted        # the patch that is out for it
    cdef uint64_t left           # the address of the newest such one

    cdef int judge(self, int fd, uint32_t reason, uint64_t address,
                   const DebugExit *debug) noexcept nogil
    cdef int hardware_hit(self, int fd, const DebugExit *debug, bint stepped) noexcept nogil
    cdef int slot_hits(self, const DebugExit *debug, bint *stands) noexcept nogil
    cdef bint slots_false(self, int hits, const uint64_t *registers) noexcept nogil
    cdef void count_passed(self, int hits, Site *site) noexcept nogil
    cdef int leave_slot(self, int fd, kvm_regs *regs, Site *site) noexcept nogil
    cdef int patch_hit(self, int fd, uint64_t back) noexcept nogil
    cdef int pass_patch(self, int fd, kvm_regs *regs, Site *site, uint64_t back,
                        bint wide) noexcept nogil
    cdef int step_over(self, int fd, Site *site) noexcept nogil
    cdef bint end_step(self, int fd) noexcept nogil
