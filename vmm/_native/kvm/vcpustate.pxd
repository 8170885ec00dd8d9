"""All that KVM keeps of one vCPU, in one object."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from vmm._native.linux.kvm cimport kvm_lapic_state, kvm_mp_state, kvm_msrs, kvm_regs
from vmm._native.linux.kvm_state cimport kvm_debugregs, kvm_sregs2, kvm_vcpu_events, kvm_xcrs

cdef enum:
    MSRS_MAX = 512               # MSRs of one vCPU; KVM lists 40 to 150
    XSAVE_MIN = 4096             # what KVM_GET_XSAVE writes
    XSAVE_MAX = 1 << 16

cdef struct Parts:
    kvm_mp_state mp_state
    kvm_vcpu_events events
    kvm_sregs2 sregs2
    kvm_regs regs
    kvm_xcrs xcrs
    kvm_lapic_state lapic
    kvm_debugregs debugregs

cdef class VcpuState:
    cdef Parts parts
    cdef kvm_msrs *msr_table
    cdef uint8_t *xsave
    cdef readonly size_t xsave_size
    cdef readonly int tsc_khz
    cdef readonly tuple cpuid
    cdef bytes packed            # ``cpuid`` for the ioctl, from the first set_cpuid() on
    cdef bint is_khz_new         # ``tsc_khz`` is what a new vCPU has by itself

    cdef VcpuState like(self)
    cdef int read_parts(self, int fd) noexcept nogil
    cdef int write_parts(self, int fd, int first, int end) noexcept nogil
    cdef int write_msrs(self, int fd, uint32_t first) noexcept nogil
    cdef int refused(self, int fd, uint32_t index) except -1
    cdef int check_plain(self) except -1
