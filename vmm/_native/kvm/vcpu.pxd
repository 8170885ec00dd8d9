"""A vCPU's file descriptor, with the page that it shares with the kernel."""

from vmm._native.host.fd cimport OwnedFd
from vmm._native.linux.kvm cimport kvm_guest_debug, kvm_run

cdef enum:
    CPUID_MAX = 256              # entries of a kvm_cpuid2 of ours

cdef class VcpuFd(OwnedFd):
    cdef readonly int index
    cdef kvm_run *run            # shared with the kernel; valid until close()
    cdef size_t run_size

# A kvm_cpuid2 as KVM_SET_CPUID2 takes it, of (function, index, flags, eax, ebx, ecx, edx) each.
cdef bytes packed_cpuid(entries)
# The table, which is as long as it says; it lives as long as the bytes do.
cdef const char *checked_cpuid(bytes table) except NULL
cdef int set_packed_cpuid(int fd, bytes table) except -1

# (function, index, flags, eax, ebx, ecx, edx) each, by an ioctl that fills a kvm_cpuid2.
cdef list cpuid_of(int fd, unsigned long request, const char *name)

# What VcpuFd.set_guest_debug() gives KVM for these arguments.
cdef int fill_debug(kvm_guest_debug *debug, bint step, breakpoints, bint software,
                    bint block_irq) except -1
