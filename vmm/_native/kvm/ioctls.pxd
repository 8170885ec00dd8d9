"""The KVM file descriptors: one class each, one method per ioctl."""

from vmm._native.host.fd cimport OwnedFd
from vmm._native.linux.kvm cimport kvm_run

from libc.stdint cimport int32_t, uint64_t

cdef class Kvm(OwnedFd):
    pass

cdef class VmFd(OwnedFd):
    pass

cdef class KvmVfio(OwnedFd):
    cdef int change(self, uint64_t attr, int32_t group_fd) except -1

cdef class VcpuFd(OwnedFd):
    cdef readonly int index
    cdef kvm_run *run            # shared with the kernel; valid until close()
    cdef size_t run_size
