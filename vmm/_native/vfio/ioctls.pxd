"""VFIO's file descriptors: one class each, one method per ioctl; and mapped device memory."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from vmm._native.kvm.bus cimport PythonTarget
from vmm._native.host.fd cimport OwnedFd

cdef class VfioContainer(OwnedFd):
    pass

cdef class VfioGroup(OwnedFd):
    pass

cdef class VfioDevice(OwnedFd):
    pass

# Device memory in this process; never read or written by us, only handed to KVM.
cdef class DeviceMapping:
    cdef char *start
    cdef size_t length

# A BAR on the bus: what KVM does not map directly is read and written here, without the GIL,
# except for [table, table_end), the MSI-X table, which belongs to the Python device.
cdef class VfioBar(PythonTarget):
    cdef int fd
    cdef uint64_t offset
    cdef uint64_t table
    cdef uint64_t table_end
    cdef readonly uint64_t accesses   # how often a vCPU came here

    cdef void forward(self, uint64_t offset, uint8_t *data, uint32_t size,
                      int is_write) noexcept nogil
