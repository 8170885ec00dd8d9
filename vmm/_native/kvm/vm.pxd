"""The file descriptors of KVM and of its VMs: one class each, one method per ioctl."""

from vmm._native.host.fd cimport OwnedFd

from libc.stdint cimport int32_t, uint16_t, uint32_t, uint64_t

from vmm._native.linux.kvm cimport kvm_irq_routing, kvm_irq_routing_entry

cdef enum:
    GSIS = 4096                  # KVM_MAX_IRQ_ROUTES of the kernel's own linux/kvm_host.h

cdef class Kvm(OwnedFd):
    pass

cdef class GsiRoutes:
    cdef kvm_irq_routing *table  # NULL while there is none
    cdef int room                # entries that `table` has place for
    cdef uint16_t places[GSIS]   # of each GSI's entry, counted from 1; 0: it has none

    cdef kvm_irq_routing_entry *entry(self, uint32_t gsi) except NULL

cdef class VmFd(OwnedFd):
    pass

cdef class KvmVfio(OwnedFd):
    cdef int change(self, uint64_t attr, int32_t group_fd) except -1
