"""/dev/iommu, and VFIO devices that are opened by files of their own."""

from vmm._native.host.fd cimport OwnedFd
from vmm._native.vfio.ioctls cimport VfioDevice

# IO address spaces (IOAS) are numbers of this descriptor and go with it.
cdef class Iommufd(OwnedFd):
    pass

# A device from /dev/vfio/devices: of no use before bind_iommufd().
cdef class CdevDevice(VfioDevice):
    pass
