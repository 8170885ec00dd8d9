"""The IOMMU domain of one VM by iommufd: devices opened one by one, in one IO address space.

Source: Documentation/userspace-api/iommufd.rst; Documentation/driver-api/vfio.rst ("VFIO Device
cdev").
"""

from __future__ import annotations

import errno

from devices.vfio.dma import DmaDomain
from vmm.errors import BusyError, HostError
from vmm.memory import no_progress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from devices.vfio.kernel import VfioKernel
    from vmm._native.kvm.vm import KvmVfio
    from vmm._native.memory.guestmem import GuestMemory
    from vmm._native.vfio.iommufd import CdevDevice, Iommufd
    from vmm.host.pci import HostDevice
    from vmm.memory import Progress


class IommufdDomain(DmaDomain):
    """One IOAS of /dev/iommu."""

    backend = "iommufd"
    accounting = " (iommufd counts all that this user's processes have locked together)"

    def __init__(self, kvm: KvmVfio, kernel: VfioKernel, progress: Progress = no_progress) -> None:
        super().__init__(kvm, kernel, progress)
        self._iommufd: Iommufd | None = None
        self._ioas = 0
        self._mapped = False

    def open_device(self, host: HostDevice, memory: GuestMemory) -> CdevDevice:
        """As the base: opened, bound to the iommufd, attached to the address space."""
        if self._iommufd is None:
            self._iommufd = self._open_iommufd()
            self._ioas = self._iommufd.ioas_alloc()
        device = self._open_cdev(host)
        try:
            self._join(host, device, memory)
        except BaseException:
            device.close()
            raise
        return device

    def _join(self, host: HostDevice, device: CdevDevice, memory: GuestMemory) -> None:
        # KVM before the bind: drivers that need to know of the guest are told while they open.
        # KVM keeps the file until it is told otherwise, or its VFIO device is closed.
        self._kvm.add_group(device.fd)
        try:
            self._bind(host, device)
            self._attach(host, device)
            if not self._mapped:
                # Only now: what is mapped is pinned when a device is there, chunk by chunk.
                self._map_ram(memory)
                self._mapped = True
            self._ranges = self._iova_ranges()
        except BaseException:
            self._kvm.del_group(device.fd)
            raise

    def _open_iommufd(self) -> Iommufd:
        try:
            return self._kernel.iommufd()
        except OSError as error:
            raise HostError(
                f"cannot open /dev/iommu: {error.strerror}",
                "modprobe iommufd; and give this user the right to open it: chown USER /dev/iommu",
            ) from error

    def _open_cdev(self, host: HostDevice) -> CdevDevice:
        try:
            return self._kernel.cdev(host.cdev)
        except OSError as error:
            raise HostError(
                f"cannot open {host.cdev} ({host.bdf}): {error.strerror}",
                "chown it to the user who runs this (a udev rule keeps that): "
                f"chown USER {host.cdev}",
            ) from error

    def _bind(self, host: HostDevice, device: CdevDevice) -> None:
        try:
            device.bind_iommufd(self._iommufd)  # type: ignore[arg-type]
        except OSError as error:
            name = f"{host.cdev} ({host.bdf})"
            if error.errno in (errno.EBUSY, errno.EINVAL):
                # One open per device file, and none while its group is open. The kernel says
                # EINVAL as well where the IOMMU does not keep caches coherent.
                raise BusyError(
                    f"{name} is in use by another process, by itself or by its group: {error}",
                    "stop the other VM first",
                ) from error
            if error.errno == errno.EPERM:
                raise HostError(
                    f"{name}: this host's IOMMU does not keep interrupts of devices apart: {error}",
                    "enable interrupt remapping in the firmware set-up; only where the guest is "
                    "trusted: modprobe iommufd allow_unsafe_interrupts=1",
                ) from error
            raise HostError(f"{name}: {error}", "see the kernel's log") from error

    def _attach(self, host: HostDevice, device: CdevDevice) -> None:
        try:
            device.attach_iommufd_pt(self._ioas)
        except OSError as error:
            raise HostError(
                f"{host.cdev} ({host.bdf}) cannot share the guest's memory with the devices "
                f"before it: {error}",
                f"cat /sys/kernel/iommu_groups/{host.group}/reserved_regions shows what its IOMMU "
                "keeps for itself; pass it through alone, or lower size in "
                "VLLMD_HYPERVISOR_MEMORY_CONFIG",
            ) from error

    def _iova_ranges(self) -> list[tuple[int, int]]:
        assert self._iommufd is not None
        return self._iommufd.ioas_iova_ranges(self._ioas)

    def _map_dma(self, hva: int, iova: int, size: int) -> None:
        assert self._iommufd is not None
        self._iommufd.ioas_map(self._ioas, hva, iova, size)

    def _unmap_dma(self, iova: int, size: int) -> None:
        if self._iommufd is not None:
            self._iommufd.ioas_unmap(self._ioas, iova, size)

    def map_device_memory(self, hva: int, gpa: int, size: int) -> None:
        """As the base; iommufd takes memory that has pages only, and a BAR has none."""
        try:
            super().map_device_memory(hva, gpa, size)
        except OSError as error:
            if error.errno != errno.EFAULT:
                raise
            raise OSError(errno.EFAULT, "iommufd maps no device memory by its address") from error

    def close(self) -> None:
        """KVM lets the devices' files go, the address space goes with the last of them."""
        self._kvm.close()
        if self._iommufd is not None:
            self._iommufd.close()
            self._iommufd = None
