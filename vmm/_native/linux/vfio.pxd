# <linux/vfio.h>, extern only: the structures and numbers used, no logic.

from libc.stdint cimport int32_t, uint16_t, uint32_t, uint64_t

cdef extern from "<linux/vfio.h>" nogil:
    unsigned long VFIO_GET_API_VERSION, VFIO_CHECK_EXTENSION, VFIO_SET_IOMMU
    unsigned long VFIO_GROUP_GET_STATUS, VFIO_GROUP_SET_CONTAINER, VFIO_GROUP_UNSET_CONTAINER
    unsigned long VFIO_GROUP_GET_DEVICE_FD
    unsigned long VFIO_DEVICE_GET_INFO, VFIO_DEVICE_GET_REGION_INFO, VFIO_DEVICE_GET_IRQ_INFO
    unsigned long VFIO_DEVICE_SET_IRQS, VFIO_DEVICE_RESET
    unsigned long VFIO_IOMMU_GET_INFO, VFIO_IOMMU_MAP_DMA, VFIO_IOMMU_UNMAP_DMA

    int VFIO_API_VERSION, VFIO_TYPE1v2_IOMMU
    int VFIO_GROUP_FLAGS_VIABLE, VFIO_GROUP_FLAGS_CONTAINER_SET
    int VFIO_DEVICE_FLAGS_RESET, VFIO_DEVICE_FLAGS_PCI
    int VFIO_REGION_INFO_FLAG_READ, VFIO_REGION_INFO_FLAG_WRITE
    int VFIO_REGION_INFO_FLAG_MMAP, VFIO_REGION_INFO_FLAG_CAPS
    int VFIO_REGION_INFO_CAP_SPARSE_MMAP, VFIO_REGION_INFO_CAP_MSIX_MAPPABLE
    int VFIO_IRQ_SET_DATA_NONE, VFIO_IRQ_SET_DATA_EVENTFD
    int VFIO_IRQ_SET_ACTION_UNMASK, VFIO_IRQ_SET_ACTION_TRIGGER
    int VFIO_PCI_BAR0_REGION_INDEX, VFIO_PCI_ROM_REGION_INDEX, VFIO_PCI_CONFIG_REGION_INDEX
    int VFIO_PCI_INTX_IRQ_INDEX, VFIO_PCI_MSI_IRQ_INDEX, VFIO_PCI_MSIX_IRQ_INDEX
    int VFIO_PCI_ERR_IRQ_INDEX, VFIO_PCI_REQ_IRQ_INDEX
    int VFIO_DMA_MAP_FLAG_READ, VFIO_DMA_MAP_FLAG_WRITE
    int VFIO_IOMMU_INFO_CAPS, VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE

    struct vfio_info_cap_header:
        uint16_t id
        uint16_t version
        uint32_t next

    struct vfio_group_status:
        uint32_t argsz
        uint32_t flags

    struct vfio_device_info:
        uint32_t argsz
        uint32_t flags
        uint32_t num_regions
        uint32_t num_irqs

    struct vfio_region_info:
        uint32_t argsz
        uint32_t flags
        uint32_t index
        uint32_t cap_offset
        uint64_t size
        uint64_t offset

    struct vfio_region_sparse_mmap_area:
        uint64_t offset
        uint64_t size

    struct vfio_region_info_cap_sparse_mmap:
        vfio_info_cap_header header
        uint32_t nr_areas
        vfio_region_sparse_mmap_area *areas

    struct vfio_irq_info:
        uint32_t argsz
        uint32_t flags
        uint32_t index
        uint32_t count

    struct vfio_irq_set:
        uint32_t argsz
        uint32_t flags
        uint32_t index
        uint32_t start
        uint32_t count

    struct vfio_iommu_type1_info:
        uint32_t argsz
        uint32_t flags
        uint64_t iova_pgsizes
        uint32_t cap_offset

    struct vfio_iova_range:
        uint64_t start
        uint64_t end

    struct vfio_iommu_type1_info_cap_iova_range:
        vfio_info_cap_header header
        uint32_t nr_iovas
        vfio_iova_range *iova_ranges

    struct vfio_iommu_type1_dma_map:
        uint32_t argsz
        uint32_t flags
        uint64_t vaddr
        uint64_t iova
        uint64_t size

    struct vfio_iommu_type1_dma_unmap:
        uint32_t argsz
        uint32_t flags
        uint64_t iova
        uint64_t size
