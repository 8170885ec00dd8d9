"""The file descriptors of KVM and of its VMs: one class each, one method per ioctl."""

from vmm._native.host.fd cimport OwnedFd

from libc.stdint cimport int32_t, uint64_t

cdef class Kvm(OwnedFd):
    pass

cdef class VmFd(OwnedFd):
    pass

cdef class KvmVfio(OwnedFd):
    cdef int change(self, uint64_t attr, int32_t group_fd) except -1
