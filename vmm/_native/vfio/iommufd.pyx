"""iommufd: DMA address spaces for devices that are opened one by one, without groups.

Source: Documentation/userspace-api/iommufd.rst, Documentation/driver-api/vfio.rst ("IOMMUFD and
vfio_iommu_type1", "VFIO Device cdev"), <linux/iommufd.h>.
"""

from libc.errno cimport EMSGSIZE, errno
from libc.stdint cimport uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from vmm._native.host.fd cimport OwnedFd, check
from vmm._native.linux.iommufd cimport *
from vmm._native.vfio.ioctls cimport VfioDevice

import os

cdef extern from "<sys/ioctl.h>" nogil:
    int ioctl(int fd, unsigned long request, ...)


cdef class Iommufd(OwnedFd):
    """/dev/iommu; what is made by it lives until it is closed and all devices are."""

    @staticmethod
    def open(path="/dev/iommu"):
        """OSError when it cannot be opened."""
        return Iommufd(os.open(path, os.O_RDWR | os.O_CLOEXEC))

    def ioas_alloc(self):
        """IOMMU_IOAS_ALLOC: the number of a new, empty address space."""
        cdef iommu_ioas_alloc request
        memset(&request, 0, sizeof(request))
        request.size = sizeof(request)
        check(ioctl(self.fd, IOMMU_IOAS_ALLOC, &request), b"IOMMU_IOAS_ALLOC")
        return request.out_ioas_id

    def ioas_iova_ranges(self, uint32_t ioas):
        """(first, last) of every range that may be mapped; each device attached narrows them."""
        cdef iommu_ioas_iova_ranges request
        cdef iommu_iova_range *ranges = NULL
        cdef int rc
        memset(&request, 0, sizeof(request))
        request.size = sizeof(request)
        request.ioas_id = ioas
        rc = ioctl(self.fd, IOMMU_IOAS_IOVA_RANGES, &request)
        if rc < 0 and errno != EMSGSIZE:
            check(rc, b"IOMMU_IOAS_IOVA_RANGES")
        ranges = <iommu_iova_range *>calloc(request.num_iovas + 1, sizeof(iommu_iova_range))
        if ranges == NULL:
            raise MemoryError
        try:
            # SAFETY: the kernel fills at most as many as num_iovas said on the way in.
            request.allowed_iovas = <uintptr_t>ranges
            check(ioctl(self.fd, IOMMU_IOAS_IOVA_RANGES, &request), b"IOMMU_IOAS_IOVA_RANGES")
            return [(ranges[i].start, ranges[i].last) for i in range(request.num_iovas)]
        finally:
            free(ranges)

    def ioas_map(self, uint32_t ioas, uint64_t hva, uint64_t iova, uint64_t size):
        """Let devices read and write [iova, iova + size), which is this process's memory at hva.

        Every page is faulted in and pinned, once a device is attached.
        """
        cdef iommu_ioas_map request
        cdef int rc
        memset(&request, 0, sizeof(request))
        request.size = sizeof(request)
        request.flags = (IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE
                         | IOMMU_IOAS_MAP_WRITEABLE)
        request.ioas_id = ioas
        request.user_va = hva
        request.iova = iova
        request.length = size
        with nogil:
            rc = ioctl(self.fd, IOMMU_IOAS_MAP, &request)
        check(rc, b"IOMMU_IOAS_MAP")

    def ioas_unmap(self, uint32_t ioas, uint64_t iova, uint64_t size):
        """Undo ioas_map() of whole mappings in the range."""
        cdef iommu_ioas_unmap request
        cdef int rc
        memset(&request, 0, sizeof(request))
        request.size = sizeof(request)
        request.ioas_id = ioas
        request.iova = iova
        request.length = size
        with nogil:
            rc = ioctl(self.fd, IOMMU_IOAS_UNMAP, &request)
        check(rc, b"IOMMU_IOAS_UNMAP")


cdef class CdevDevice(VfioDevice):
    """/dev/vfio/devices/vfioN: a device by itself. Closing it detaches and unbinds it."""

    @staticmethod
    def open(path):
        """OSError when it cannot be opened."""
        return CdevDevice(os.open(path, os.O_RDWR | os.O_CLOEXEC))

    def bind_iommufd(self, Iommufd iommufd not None):
        """VFIO_DEVICE_BIND_IOMMUFD; KVM must have been told of the device before."""
        cdef vfio_device_bind_iommufd request
        cdef int rc
        memset(&request, 0, sizeof(request))
        request.argsz = sizeof(request)
        request.iommufd = iommufd.fd
        with nogil:
            rc = ioctl(self.fd, VFIO_DEVICE_BIND_IOMMUFD, &request)
        check(rc, b"VFIO_DEVICE_BIND_IOMMUFD")
        return request.out_devid

    def attach_iommufd_pt(self, uint32_t ioas):
        """VFIO_DEVICE_ATTACH_IOMMUFD_PT: what is mapped there is what the device reaches."""
        cdef vfio_device_attach_iommufd_pt request
        cdef int rc
        memset(&request, 0, sizeof(request))
        request.argsz = sizeof(request)
        request.pt_id = ioas
        with nogil:
            rc = ioctl(self.fd, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &request)
        check(rc, b"VFIO_DEVICE_ATTACH_IOMMUFD_PT")
