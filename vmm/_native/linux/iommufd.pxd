# <linux/iommufd.h> and what <linux/vfio.h> has for it, extern only: no logic.

from libc.stdint cimport int32_t, uint32_t, uint64_t

cdef extern from "iommufd_compat.h" nogil:
    unsigned long IOMMU_IOAS_ALLOC, IOMMU_IOAS_IOVA_RANGES
    unsigned long IOMMU_IOAS_MAP, IOMMU_IOAS_UNMAP
    unsigned long VFIO_DEVICE_BIND_IOMMUFD, VFIO_DEVICE_ATTACH_IOMMUFD_PT
    int IOMMU_IOAS_MAP_FIXED_IOVA, IOMMU_IOAS_MAP_WRITEABLE, IOMMU_IOAS_MAP_READABLE

    struct iommu_ioas_alloc:
        uint32_t size
        uint32_t flags
        uint32_t out_ioas_id

    struct iommu_iova_range:
        uint64_t start
        uint64_t last

    struct iommu_ioas_iova_ranges:
        uint32_t size
        uint32_t ioas_id
        uint32_t num_iovas
        uint64_t allowed_iovas
        uint64_t out_iova_alignment

    struct iommu_ioas_map:
        uint32_t size
        uint32_t flags
        uint32_t ioas_id
        uint64_t user_va
        uint64_t length
        uint64_t iova

    struct iommu_ioas_unmap:
        uint32_t size
        uint32_t ioas_id
        uint64_t iova
        uint64_t length

    struct vfio_device_bind_iommufd:
        uint32_t argsz
        uint32_t flags
        int32_t iommufd
        uint32_t out_devid

    struct vfio_device_attach_iommufd_pt:
        uint32_t argsz
        uint32_t flags
        uint32_t pt_id
