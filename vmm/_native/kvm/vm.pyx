"""/dev/kvm without policy: a method has the lower-case name of its ioctl, without ``KVM_``.

Every method may be called from any thread. Failures raise IoctlError with the ioctl's name.
Source: Documentation/virt/kvm/api.rst.
"""

from libc.errno cimport EINTR, errno
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport free, realloc
from libc.string cimport memset

from vmm._native.host.fd cimport OwnedFd, check
from vmm._native.kvm.vcpu cimport VcpuFd, cpuid_of
from vmm._native.linux.kvm cimport *

import os

cdef extern from "<sys/ioctl.h>" nogil:
    int ioctl(int fd, unsigned long request, ...)

cdef enum:
    ROUTES_STEP = 128

cdef extern from "<linux/version.h>":
    enum: LINUX_VERSION_CODE

# What this was compiled with: the KVM API's version, and major, minor, patch of the headers.
API_VERSION = KVM_API_VERSION
HEADERS_VERSION = (
    LINUX_VERSION_CODE >> 16, LINUX_VERSION_CODE >> 8 & 0xff, LINUX_VERSION_CODE & 0xff
)


cdef class Kvm(OwnedFd):
    """/dev/kvm, opened by open()."""

    @staticmethod
    def open(path="/dev/kvm"):
        """Open the device; OSError when it is missing or not permitted."""
        return Kvm(os.open(path, os.O_RDWR | os.O_CLOEXEC))

    def get_api_version(self):
        """12 on every kernel since 2.6.22."""
        return check(ioctl(self.fd, KVM_GET_API_VERSION, 0), b"KVM_GET_API_VERSION")

    def check_extension(self, int capability):
        """0 when the capability is absent, else its value."""
        return check(ioctl(self.fd, KVM_CHECK_EXTENSION, capability), b"KVM_CHECK_EXTENSION")

    def get_vcpu_mmap_size(self):
        """Bytes to map of a vCPU's fd."""
        return check(ioctl(self.fd, KVM_GET_VCPU_MMAP_SIZE, 0), b"KVM_GET_VCPU_MMAP_SIZE")

    def create_vm(self):
        """A new VM; tried again when a signal interrupted the kernel's allocation."""
        cdef int fd
        while True:
            with nogil:
                fd = ioctl(self.fd, KVM_CREATE_VM, 0)
            if fd >= 0 or errno != EINTR:
                return VmFd(check(fd, b"KVM_CREATE_VM"))

    def get_supported_cpuid(self):
        """List of (function, index, flags, eax, ebx, ecx, edx) that KVM can give a guest."""
        return cpuid_of(self.fd, KVM_GET_SUPPORTED_CPUID, b"KVM_GET_SUPPORTED_CPUID")


cdef class GsiRoutes:
    """A routing table as KVM_SET_GSI_ROUTING takes it: one route for a GSI, in no order.

    Kept from call to call, so that a change costs its own entry and no more. One thread at a time.
    """

    def __dealloc__(self):
        free(self.table)

    def pin(self, uint32_t gsi, uint32_t pin):
        """``gsi`` is the IOAPIC's ``pin``."""
        cdef kvm_irq_routing_entry *entry = self.entry(gsi)
        entry.type = KVM_IRQ_ROUTING_IRQCHIP
        entry.u.irqchip.irqchip = KVM_IRQCHIP_IOAPIC
        entry.u.irqchip.pin = pin

    def message(self, uint32_t gsi, uint32_t address_lo, uint32_t address_hi, uint32_t data):
        """``gsi`` is a message."""
        cdef kvm_irq_routing_entry *entry = self.entry(gsi)
        entry.type = KVM_IRQ_ROUTING_MSI
        entry.u.msi.address_lo = address_lo
        entry.u.msi.address_hi = address_hi
        entry.u.msi.data = data

    def remove(self, uint32_t gsi):
        """Nothing any more; harmless when it was nothing before."""
        cdef int place
        if gsi >= GSIS or self.places[gsi] == 0:
            return
        place = self.places[gsi] - 1
        self.table.nr -= 1
        # The last one takes its place.
        self.table.entries[place] = self.table.entries[<int>self.table.nr]
        self.places[self.table.entries[place].gsi] = place + 1
        self.places[gsi] = 0

    def messages(self):
        """(gsi, address_lo, address_hi, data) of every message, ascending."""
        return sorted([(entry.gsi, entry.u.msi.address_lo, entry.u.msi.address_hi, entry.u.msi.data)
                       for entry in self.table.entries[:self.table.nr]
                       if entry.type == <uint32_t>KVM_IRQ_ROUTING_MSI]) if self.table else []

    cdef kvm_irq_routing_entry *entry(self, uint32_t gsi) except NULL:
        cdef kvm_irq_routing *grown
        cdef int count = self.table.nr if self.table != NULL else 0
        if gsi >= GSIS:
            raise ValueError(f"GSI {gsi}: KVM routes those below {GSIS}")
        if self.places[gsi] == 0:
            if count == self.room:
                grown = <kvm_irq_routing *>realloc(
                    self.table, sizeof(kvm_irq_routing)
                    + (count + ROUTES_STEP) * sizeof(kvm_irq_routing_entry))
                if grown == NULL:
                    raise MemoryError
                if self.table == NULL:
                    memset(grown, 0, sizeof(kvm_irq_routing))
                self.table = grown
                self.room = count + ROUTES_STEP
            self.places[gsi] = count + 1
            self.table.nr = count + 1
        # SAFETY: a place is at most `nr`, for which there is room.
        cdef kvm_irq_routing_entry *entry = &self.table.entries[self.places[gsi] - 1]
        memset(entry, 0, sizeof(kvm_irq_routing_entry))
        entry.gsi = gsi
        return entry


cdef class VmFd(OwnedFd):
    """One virtual machine."""

    def set_user_memory_region(self, uint32_t slot, uint64_t gpa, uint64_t size, uint64_t hva,
                               uint32_t flags=0):
        """Give the guest ``size`` bytes of host memory at ``gpa``; size 0 takes the slot back."""
        cdef kvm_userspace_memory_region region
        region.slot = slot
        region.flags = flags
        region.guest_phys_addr = gpa
        region.memory_size = size
        region.userspace_addr = hva
        cdef int rc
        with nogil:
            rc = ioctl(self.fd, KVM_SET_USER_MEMORY_REGION, &region)
        check(rc, b"KVM_SET_USER_MEMORY_REGION")

    def set_tss_addr(self, unsigned long gpa):
        """Three pages for Intel's real-mode task segment; before the first vCPU."""
        check(ioctl(self.fd, KVM_SET_TSS_ADDR, gpa), b"KVM_SET_TSS_ADDR")

    def set_identity_map_addr(self, uint64_t gpa):
        """One page for Intel's real-mode page table; before the first vCPU."""
        check(ioctl(self.fd, KVM_SET_IDENTITY_MAP_ADDR, &gpa), b"KVM_SET_IDENTITY_MAP_ADDR")

    def create_irqchip(self):
        """LAPICs, IOAPIC and 8259s in the kernel."""
        cdef int rc
        with nogil:
            rc = ioctl(self.fd, KVM_CREATE_IRQCHIP, 0)
        check(rc, b"KVM_CREATE_IRQCHIP")

    def enable_cap(self, uint32_t capability, uint64_t argument):
        """Switch a capability on for this VM."""
        cdef kvm_enable_cap cap
        memset(&cap, 0, sizeof(cap))
        cap.cap = capability
        cap.args[0] = argument
        check(ioctl(self.fd, KVM_ENABLE_CAP, &cap), b"KVM_ENABLE_CAP")

    def check_extension(self, int capability):
        """As Kvm.check_extension, for this VM."""
        return check(ioctl(self.fd, KVM_CHECK_EXTENSION, capability), b"KVM_CHECK_EXTENSION")

    def get_stats_fd(self):
        """A new descriptor of the VM's statistics (KVM_CAP_BINARY_STATS_FD); the caller's."""
        return check(ioctl(self.fd, KVM_GET_STATS_FD, 0), b"KVM_GET_STATS_FD")

    def create_vcpu(self, int apic_id, int index, size_t mmap_size):
        """A vCPU whose APIC id is ``apic_id``; ``index`` names it in messages."""
        cdef int fd
        with nogil:
            fd = ioctl(self.fd, KVM_CREATE_VCPU, apic_id)
        return VcpuFd(check(fd, b"KVM_CREATE_VCPU"), index, mmap_size)

    def set_gsi_routing(self, GsiRoutes routes not None):
        """Replace the whole table by ``routes``."""
        cdef int rc
        cdef kvm_irq_routing none
        cdef kvm_irq_routing *table = routes.table
        if table == NULL:
            memset(&none, 0, sizeof(none))
            table = &none
        with nogil:
            rc = ioctl(self.fd, KVM_SET_GSI_ROUTING, table)
        check(rc, b"KVM_SET_GSI_ROUTING")

    def set_msr_filter(self, ranges):
        """Which MSR accesses leave for us; replaces all. Empty: none.

        ``ranges`` are (reads, writes, base, bitmap): the MSRs from ``base`` on, one bit each, that
        is 0 for those meant. At most 16. Source: api.rst, 4.97 (KVM_X86_SET_MSR_FILTER).
        """
        cdef kvm_msr_filter table
        cdef int i = 0
        memset(&table, 0, sizeof(table))
        if len(ranges) > KVM_MSR_FILTER_MAX_RANGES:
            raise ValueError(f"{len(ranges)} ranges of MSRs: at most {KVM_MSR_FILTER_MAX_RANGES}")
        for reads, writes, base, bitmap in ranges:
            if not 0 < len(bitmap) <= KVM_MSR_FILTER_MAX_BITMAP_SIZE:
                raise ValueError(f"a bitmap of {len(bitmap)} bytes for MSRs from {base:#x} on")
            # SAFETY: `ranges` keeps each bitmap (bytes) alive over the call.
            table.ranges[i].flags = (
                (KVM_MSR_FILTER_READ if reads else 0) | (KVM_MSR_FILTER_WRITE if writes else 0))
            table.ranges[i].nmsrs = 8 * len(bitmap)
            table.ranges[i].base = base
            table.ranges[i].bitmap = <uint8_t *><char *>(<bytes>bitmap)
            i += 1
        cdef int rc
        with nogil:
            rc = ioctl(self.fd, KVM_X86_SET_MSR_FILTER, &table)
        check(rc, b"KVM_X86_SET_MSR_FILTER")

    def register_coalesced_mmio(self, uint64_t address, uint32_t size, bint pio):
        """Keep writes there (ports with ``pio``) in a ring until the next exit."""
        cdef kvm_coalesced_mmio_zone zone
        zone.addr = address
        zone.size = size
        zone.pio = pio
        cdef int rc
        with nogil:
            rc = ioctl(self.fd, KVM_REGISTER_COALESCED_MMIO, &zone)
        check(rc, b"KVM_REGISTER_COALESCED_MMIO")

    def irq_line(self, uint32_t gsi, bint level):
        """Raise or lower an interrupt line."""
        cdef kvm_irq_level line
        line.irq = gsi
        line.level = level
        cdef int rc
        with nogil:
            rc = ioctl(self.fd, KVM_IRQ_LINE, &line)
        check(rc, b"KVM_IRQ_LINE")

    def create_vfio_device(self):
        """KVM's view of VFIO: it must know the groups whose devices the guest uses."""
        cdef kvm_create_device request
        memset(&request, 0, sizeof(request))
        request.type = KVM_DEV_TYPE_VFIO
        check(ioctl(self.fd, KVM_CREATE_DEVICE, &request), b"KVM_CREATE_DEVICE")
        return KvmVfio(request.fd)

    def irqfd(self, int fd, uint32_t gsi, bint assign=True, int resample_fd=-1):
        """Tie an eventfd to a GSI, or untie it."""
        cdef kvm_irqfd request
        memset(&request, 0, sizeof(request))
        request.fd = fd
        request.gsi = gsi
        request.flags = 0 if assign else KVM_IRQFD_FLAG_DEASSIGN
        if resample_fd >= 0:
            request.flags |= KVM_IRQFD_FLAG_RESAMPLE
            request.resamplefd = resample_fd
        cdef int rc
        with nogil:
            rc = ioctl(self.fd, KVM_IRQFD, &request)
        check(rc, b"KVM_IRQFD")

    def ioeventfd(self, int fd, uint64_t gpa, uint32_t length=0, bint assign=True):
        """Signal ``fd`` when the guest writes at ``gpa`` (MMIO); length 0 is any length."""
        cdef kvm_ioeventfd request
        memset(&request, 0, sizeof(request))
        request.addr = gpa
        request.len = length
        request.fd = fd
        request.flags = 0 if assign else KVM_IOEVENTFD_FLAG_DEASSIGN
        cdef int rc
        with nogil:
            rc = ioctl(self.fd, KVM_IOEVENTFD, &request)
        check(rc, b"KVM_IOEVENTFD")


cdef class KvmVfio(OwnedFd):
    """KVM_DEV_TYPE_VFIO. Source: Documentation/virt/kvm/devices/vfio.rst."""

    def add_group(self, int group_fd):
        """The guest uses devices of this group from now on."""
        self.change(KVM_DEV_VFIO_GROUP_ADD, group_fd)

    def del_group(self, int group_fd):
        """It uses them no more."""
        self.change(KVM_DEV_VFIO_GROUP_DEL, group_fd)

    cdef int change(self, uint64_t attr, int32_t group_fd) except -1:
        cdef kvm_device_attr request
        cdef int32_t fd = group_fd
        memset(&request, 0, sizeof(request))
        request.group = KVM_DEV_VFIO_GROUP
        request.attr = attr
        request.addr = <uint64_t><uintptr_t>&fd
        return check(ioctl(self.fd, KVM_SET_DEVICE_ATTR, &request), b"KVM_SET_DEVICE_ATTR")
