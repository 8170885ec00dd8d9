"""VFIO: a container is an IOMMU domain, a group what must be taken together, a device what runs.

Source: Documentation/driver-api/vfio.rst, <linux/vfio.h>.
"""

from libc.errno cimport errno
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset
from posix.types cimport off_t

from vmm._native.kvm.bus cimport OUTCOME_CONTINUE, python_access
from vmm._native.host.fd cimport OwnedFd, check
from vmm._native.linux.vfio cimport *

import os

cdef extern from "<sys/ioctl.h>" nogil:
    int ioctl(int fd, unsigned long request, ...)

cdef extern from "<unistd.h>" nogil:
    ssize_t pread(int fd, void *data, size_t length, off_t offset)
    ssize_t pwrite(int fd, const void *data, size_t length, off_t offset)

cdef extern from "<sys/mman.h>" nogil:
    int PROT_NONE, PROT_READ, PROT_WRITE
    int MAP_SHARED, MAP_PRIVATE, MAP_ANONYMOUS, MAP_NORESERVE, MAP_FIXED
    void *MAP_FAILED
    void *mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset)
    int munmap(void *addr, size_t length)

cdef enum:
    PAGE = 4096
    IRQS_MAX = 2048              # the most vectors MSI-X has
    CAPS_MAX = 64                # capabilities followed in one chain

ALIGNMENT_MAX = 1 << 30
TYPE1V2 = VFIO_TYPE1v2_IOMMU
API_VERSION = VFIO_API_VERSION
VIABLE = VFIO_GROUP_FLAGS_VIABLE
CONTAINER_SET = VFIO_GROUP_FLAGS_CONTAINER_SET
FLAG_RESET = VFIO_DEVICE_FLAGS_RESET
FLAG_PCI = VFIO_DEVICE_FLAGS_PCI
REGION_MMAP = VFIO_REGION_INFO_FLAG_MMAP
ROM_REGION = VFIO_PCI_ROM_REGION_INDEX
CONFIG_REGION = VFIO_PCI_CONFIG_REGION_INDEX
INTX = VFIO_PCI_INTX_IRQ_INDEX
MSI = VFIO_PCI_MSI_IRQ_INDEX
MSIX = VFIO_PCI_MSIX_IRQ_INDEX
ERR = VFIO_PCI_ERR_IRQ_INDEX
REQ = VFIO_PCI_REQ_IRQ_INDEX


cdef class VfioContainer(OwnedFd):
    """/dev/vfio/vfio: one set of DMA mappings for all groups in it."""

    @staticmethod
    def open(path="/dev/vfio/vfio"):
        """OSError when it cannot be opened."""
        return VfioContainer(os.open(path, os.O_RDWR | os.O_CLOEXEC))

    def get_api_version(self):
        """VFIO_GET_API_VERSION."""
        return check(ioctl(self.fd, VFIO_GET_API_VERSION), b"VFIO_GET_API_VERSION")

    def check_extension(self, int extension):
        """True when the IOMMU model ``extension`` is there."""
        return check(ioctl(self.fd, VFIO_CHECK_EXTENSION, extension), b"VFIO_CHECK_EXTENSION") > 0

    def set_iommu(self, int kind):
        """Choose the IOMMU model, once the first group is in."""
        check(ioctl(self.fd, VFIO_SET_IOMMU, kind), b"VFIO_SET_IOMMU")

    def iova_ranges(self):
        """(first, last) of every range that may be mapped; empty when the kernel does not say."""
        cdef vfio_iommu_type1_info head
        cdef vfio_info_cap_header *cap
        cdef vfio_iommu_type1_info_cap_iova_range *ranges
        cdef char *data
        memset(&head, 0, sizeof(head))
        head.argsz = sizeof(head)
        check(ioctl(self.fd, VFIO_IOMMU_GET_INFO, &head), b"VFIO_IOMMU_GET_INFO")
        if not head.flags & VFIO_IOMMU_INFO_CAPS or head.argsz <= sizeof(head):
            return []
        data = <char *>calloc(1, head.argsz)
        if data == NULL:
            raise MemoryError
        try:
            (<vfio_iommu_type1_info *>data).argsz = head.argsz
            check(ioctl(self.fd, VFIO_IOMMU_GET_INFO, data), b"VFIO_IOMMU_GET_INFO")
            cap = find_cap(data, head.argsz, (<vfio_iommu_type1_info *>data).cap_offset,
                           VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE)
            if cap == NULL:
                return []
            ranges = <vfio_iommu_type1_info_cap_iova_range *>cap
            return [((<vfio_iova_range *>&ranges.iova_ranges)[i].start,
                     (<vfio_iova_range *>&ranges.iova_ranges)[i].end)
                    for i in range(ranges.nr_iovas)]
        finally:
            free(data)

    def map_dma(self, uint64_t hva, uint64_t iova, uint64_t size):
        """Let devices read and write [iova, iova + size), which is this process's memory at hva.

        Every page is faulted in and pinned.
        """
        cdef vfio_iommu_type1_dma_map request
        cdef int rc
        memset(&request, 0, sizeof(request))
        request.argsz = sizeof(request)
        request.flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE
        request.vaddr = hva
        request.iova = iova
        request.size = size
        with nogil:
            rc = ioctl(self.fd, VFIO_IOMMU_MAP_DMA, &request)
        check(rc, b"VFIO_IOMMU_MAP_DMA")

    def unmap_dma(self, uint64_t iova, uint64_t size):
        """Undo map_dma() of whole mappings in the range."""
        cdef vfio_iommu_type1_dma_unmap request
        cdef int rc
        memset(&request, 0, sizeof(request))
        request.argsz = sizeof(request)
        request.iova = iova
        request.size = size
        with nogil:
            rc = ioctl(self.fd, VFIO_IOMMU_UNMAP_DMA, &request)
        check(rc, b"VFIO_IOMMU_UNMAP_DMA")


cdef class VfioGroup(OwnedFd):
    """/dev/vfio/N."""

    @staticmethod
    def open(path):
        """OSError when it cannot be opened (EBUSY: another process has it)."""
        return VfioGroup(os.open(path, os.O_RDWR | os.O_CLOEXEC))

    def get_status(self):
        """Flags: VIABLE, CONTAINER_SET."""
        cdef vfio_group_status status
        memset(&status, 0, sizeof(status))
        status.argsz = sizeof(status)
        check(ioctl(self.fd, VFIO_GROUP_GET_STATUS, &status), b"VFIO_GROUP_GET_STATUS")
        return status.flags

    def set_container(self, VfioContainer container not None):
        """Put the group into a container."""
        cdef int32_t fd = container.fd
        check(ioctl(self.fd, VFIO_GROUP_SET_CONTAINER, &fd), b"VFIO_GROUP_SET_CONTAINER")

    def unset_container(self):
        """Take the group out; its device fds are closed before."""
        check(ioctl(self.fd, VFIO_GROUP_UNSET_CONTAINER), b"VFIO_GROUP_UNSET_CONTAINER")

    def get_device_fd(self, str bdf):
        """The device with this PCI address."""
        cdef bytes name = bdf.encode()
        cdef int fd = ioctl(self.fd, VFIO_GROUP_GET_DEVICE_FD, <const char *>name)
        return VfioDevice(check(fd, b"VFIO_GROUP_GET_DEVICE_FD"))


cdef class VfioDevice(OwnedFd):
    """One device: its regions and interrupts."""

    def get_info(self):
        """(flags, number of regions, number of interrupt kinds)."""
        cdef vfio_device_info info
        memset(&info, 0, sizeof(info))
        info.argsz = sizeof(info)
        check(ioctl(self.fd, VFIO_DEVICE_GET_INFO, &info), b"VFIO_DEVICE_GET_INFO")
        return info.flags, info.num_regions, info.num_irqs

    def get_region_info(self, uint32_t index):
        """(flags, size, file offset, areas, msix_mappable) of a region.

        ``areas``: (offset, size) of what can be mapped, None for all of it.
        """
        cdef vfio_region_info head
        cdef vfio_region_info_cap_sparse_mmap *sparse
        cdef char *data
        memset(&head, 0, sizeof(head))
        head.argsz = sizeof(head)
        head.index = index
        check(ioctl(self.fd, VFIO_DEVICE_GET_REGION_INFO, &head), b"VFIO_DEVICE_GET_REGION_INFO")
        if not head.flags & VFIO_REGION_INFO_FLAG_CAPS or head.argsz <= sizeof(head):
            return head.flags, head.size, head.offset, None, False
        data = <char *>calloc(1, head.argsz)
        if data == NULL:
            raise MemoryError
        try:
            (<vfio_region_info *>data).argsz = head.argsz
            (<vfio_region_info *>data).index = index
            check(ioctl(self.fd, VFIO_DEVICE_GET_REGION_INFO, data),
                  b"VFIO_DEVICE_GET_REGION_INFO")
            areas = None
            sparse = <vfio_region_info_cap_sparse_mmap *>find_cap(
                data, head.argsz, (<vfio_region_info *>data).cap_offset,
                VFIO_REGION_INFO_CAP_SPARSE_MMAP)
            if sparse != NULL:
                areas = [((<vfio_region_sparse_mmap_area *>&sparse.areas)[i].offset,
                          (<vfio_region_sparse_mmap_area *>&sparse.areas)[i].size)
                         for i in range(sparse.nr_areas)]
            mappable = find_cap(data, head.argsz, (<vfio_region_info *>data).cap_offset,
                                VFIO_REGION_INFO_CAP_MSIX_MAPPABLE) != NULL
            return head.flags, head.size, head.offset, areas, mappable
        finally:
            free(data)

    def get_irq_count(self, uint32_t index):
        """How many interrupts of one kind (INTX, MSI, MSIX) the device has."""
        cdef vfio_irq_info info
        memset(&info, 0, sizeof(info))
        info.argsz = sizeof(info)
        info.index = index
        check(ioctl(self.fd, VFIO_DEVICE_GET_IRQ_INFO, &info), b"VFIO_DEVICE_GET_IRQ_INFO")
        return info.count

    def trigger_eventfds(self, uint32_t index, fds):
        """Signal ``fds`` (one for each interrupt from 0 on) when the device interrupts.

        Returns 0, or how many interrupts the host can give when it has fewer; none is on then.
        """
        return self.set_irqs(index, VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER, fds)

    def unmask_eventfd(self, uint32_t index, int fd):
        """Unmask the (level) interrupt whenever ``fd`` is signalled."""
        self.set_irqs(index, VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_UNMASK, [fd])

    def disable_irqs(self, uint32_t index):
        """Switch all interrupts of one kind off."""
        self.set_irqs(index, VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER, [])

    def set_irqs(self, uint32_t index, uint32_t flags, fds):
        """VFIO_DEVICE_SET_IRQS for interrupts from 0 on; returns what the kernel does."""
        cdef size_t count = len(fds)
        cdef size_t size = sizeof(vfio_irq_set) + count * sizeof(int32_t)
        cdef vfio_irq_set *request
        cdef size_t i
        cdef int rc
        if count > IRQS_MAX:
            raise ValueError(f"{count} interrupts: at most {IRQS_MAX}")
        request = <vfio_irq_set *>calloc(1, size)
        if request == NULL:
            raise MemoryError
        request.argsz = size
        request.flags = flags
        request.index = index
        request.count = count
        try:
            for i in range(count):
                (<int32_t *>(<char *>request + sizeof(vfio_irq_set)))[i] = fds[i]
            with nogil:
                rc = ioctl(self.fd, VFIO_DEVICE_SET_IRQS, request)
            return check(rc, b"VFIO_DEVICE_SET_IRQS")
        finally:
            free(request)

    def map(self, uint64_t offset, uint64_t size):
        """[offset, offset + size) of the device's file, mapped: a DeviceMapping."""
        return DeviceMapping(self, offset, size)

    def reset(self):
        """VFIO_DEVICE_RESET."""
        cdef int rc
        with nogil:
            rc = ioctl(self.fd, VFIO_DEVICE_RESET)
        check(rc, b"VFIO_DEVICE_RESET")

    def read(self, uint64_t offset, int size):
        """``size`` bytes of the device's file at ``offset`` as a number; OSError when cut short."""
        cdef uint64_t value = 0
        cdef ssize_t got
        if not 0 < size <= 8:
            raise ValueError(f"{size} bytes: 1 to 8 are possible")
        with nogil:
            got = pread(self.fd, &value, size, offset)
        check(got, b"pread of a VFIO region")
        if got != size:
            raise OSError(f"a VFIO region ended: {got} of {size} bytes at {offset:#x}")
        return value

    def write(self, uint64_t offset, uint64_t value, int size):
        """Write ``size`` bytes of the device's file at ``offset``."""
        cdef ssize_t got
        if not 0 < size <= 8:
            raise ValueError(f"{size} bytes: 1 to 8 are possible")
        with nogil:
            got = pwrite(self.fd, &value, size, offset)
        check(got, b"pwrite of a VFIO region")


# SAFETY: the chain comes from the kernel; its offsets are checked against the buffer all the same.
cdef vfio_info_cap_header *find_cap(char *data, uint32_t size, uint32_t offset, int kind) noexcept:
    cdef vfio_info_cap_header *cap
    cdef int followed = 0
    while offset and offset + sizeof(vfio_info_cap_header) <= size and followed < CAPS_MAX:
        cap = <vfio_info_cap_header *>(data + offset)
        if cap.id == kind:
            return cap
        offset = cap.next
        followed += 1
    return NULL


cdef class DeviceMapping:
    """[offset, offset + size) of a device's file, mapped; ``address`` is its host address.

    Aligned to min(1 GiB, the power of two up to ``size``), so that the kernel can use huge pages.
    """

    def __cinit__(self, VfioDevice device not None, uint64_t offset, uint64_t size):
        cdef uint64_t alignment = PAGE
        cdef char *reserved
        cdef char *start
        if size == 0 or size % PAGE or offset % PAGE:
            raise ValueError(f"a mapping of {size:#x} bytes at {offset:#x}: pages are needed")
        while alignment * 2 <= size and alignment < <uint64_t>ALIGNMENT_MAX:
            alignment *= 2
        reserved = <char *>mmap(NULL, size + alignment, PROT_NONE,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        if <void *>reserved == MAP_FAILED:
            check(-1, b"mmap of address space for a BAR")
        start = <char *>(((<uintptr_t>reserved) + alignment - 1) & ~(<uintptr_t>alignment - 1))
        if mmap(start, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, device.fd,
                offset) == MAP_FAILED:
            code = errno
            munmap(reserved, size + alignment)
            (&errno)[0] = code
            check(-1, b"mmap of a BAR")
        if start > reserved:
            munmap(reserved, start - reserved)
        munmap(start + size, alignment - (start - reserved))
        self.start = start
        self.length = size

    def __dealloc__(self):
        self.close()

    @property
    def address(self):
        """Host address, for a KVM memory slot."""
        return <uintptr_t>self.start

    @property
    def size(self):
        """Bytes."""
        return self.length

    def close(self):
        """Unmap; no memory slot may use it any more. Idempotent."""
        if self.start != NULL:
            munmap(self.start, self.length)
            self.start = NULL


cdef int bar_access(void *opaque, uint64_t offset, uint8_t *data, uint32_t size,
                    int is_write) noexcept nogil:
    # SAFETY: the bus keeps the object alive and passes offsets inside the BAR; data has `size`
    # bytes. The owner closes the fd only after the vCPUs have ended.
    if (<VfioBar>opaque).table_end > offset and offset + size > (<VfioBar>opaque).table:
        return python_access(opaque, offset, data, size, is_write)
    (<VfioBar>opaque).forward(offset, data, size, is_write)
    return OUTCOME_CONTINUE


cdef class VfioBar(PythonTarget):
    """``device`` (Python) serves [table, table_end); all else goes to the file at ``offset``."""

    def __cinit__(self, device, VfioDevice vfio, uint64_t offset, uint64_t table,
                  uint64_t table_end):
        self.fd = vfio.fd
        self.offset = offset
        self.table = table
        self.table_end = table_end
        self.handler = bar_access

    cdef void forward(self, uint64_t offset, uint8_t *data, uint32_t size,
                      int is_write) noexcept nogil:
        self.accesses += 1
        if is_write:
            pwrite(self.fd, data, size, self.offset + offset)
        elif pread(self.fd, data, size, self.offset + offset) != <ssize_t>size:
            memset(data, 0xff, size)     # what a device that is gone answers
