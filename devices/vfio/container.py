"""The IOMMU domain of one VM: groups in one container, guest RAM mapped where the guest sees it.

Source: Documentation/driver-api/vfio.rst (type 1 version 2).
"""

from __future__ import annotations

import errno

from devices.vfio.dma import DmaDomain
from vmm._native.vfio import ioctls as vfio
from vmm.errors import BusyError, HostError
from vmm.log.hub import get_logger
from vmm.memory import no_progress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from devices.vfio.kernel import VfioKernel
    from vmm._native.kvm.vm import KvmVfio
    from vmm._native.memory.guestmem import GuestMemory
    from vmm._native.vfio.ioctls import VfioContainer, VfioDevice, VfioGroup
    from vmm.host.pci import HostDevice
    from vmm.memory import Progress

log = get_logger(__name__)

GROUP_PATH = "/dev/vfio/{}"


class ContainerDomain(DmaDomain):
    """One container."""

    backend = "type1v2"

    def __init__(self, kvm: KvmVfio, kernel: VfioKernel, progress: Progress = no_progress) -> None:
        super().__init__(kvm, kernel, progress)
        self._container: VfioContainer | None = None
        self._groups: dict[int, VfioGroup] = {}
        self._told_kvm: set[int] = set()

    def open_device(self, host: HostDevice, memory: GuestMemory) -> VfioDevice:
        """As the base: from its group, which is put into the container first."""
        if host.group not in self._groups:
            self._add_group(host.group, memory)
        try:
            return self._groups[host.group].get_device_fd(host.bdf)
        except OSError as error:
            raise HostError(
                f"cannot open the device {host.bdf} of IOMMU group {host.group}: {error}",
                "see the kernel's log; a device in a low power state or without its "
                "vfio-pci driver answers so",
            ) from error

    def _add_group(self, number: int, memory: GuestMemory) -> None:
        container = self._container or self._open_container()
        group = self._open_group(number)
        try:
            group.set_container(container)
        except OSError as error:
            group.close()
            raise HostError(
                f"IOMMU group {number} cannot join the others' container: {error}",
                "pass devices through that are behind the same kind of IOMMU",
            ) from error
        self._groups[number] = group
        if len(self._groups) == 1:
            container.set_iommu(vfio.TYPE1V2)
            self._map_ram(memory)
        self._kvm.add_group(group.fd)
        self._told_kvm.add(number)

    def _open_container(self) -> VfioContainer:
        try:
            container = self._kernel.container()
        except OSError as error:
            raise HostError(
                f"cannot open /dev/vfio/vfio: {error.strerror}",
                "modprobe vfio-pci; and give this user the right to open it",
            ) from error
        self._container = container
        if container.get_api_version() != vfio.API_VERSION or not container.check_extension(
            vfio.TYPE1V2
        ):
            raise HostError(
                "this host's VFIO has no type 1 version 2 IOMMU", "modprobe vfio_iommu_type1"
            )
        return container

    def _open_group(self, number: int) -> VfioGroup:
        path = GROUP_PATH.format(number)
        try:
            group = self._kernel.group(path)
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise BusyError(
                    f"{path} is in use by another process", "stop the other VM first"
                ) from error
            raise HostError(
                f"cannot open {path}: {error.strerror}",
                f"chown it to the user who runs this (a udev rule keeps that): chown USER {path}",
            ) from error
        flags = group.get_status()
        if not flags & vfio.VIABLE or flags & vfio.CONTAINER_SET:
            group.close()
            what = "is in use already" if flags & vfio.VIABLE else "has members on host drivers"
            raise HostError(
                f"IOMMU group {number} {what}",
                f"ls -l /sys/kernel/iommu_groups/{number}/devices/*/driver",
            )
        return group

    def _iova_ranges(self) -> list[tuple[int, int]]:
        assert self._container is not None
        return self._container.iova_ranges()

    def _map_dma(self, hva: int, iova: int, size: int) -> None:
        assert self._container is not None
        self._container.map_dma(hva, iova, size)

    def _unmap_dma(self, iova: int, size: int) -> None:
        if self._container is not None:
            self._container.unmap_dma(iova, size)

    def close(self) -> None:
        """Give groups and container back; the mappings go with the container. Idempotent."""
        for number, group in self._groups.items():
            try:
                if number in self._told_kvm:
                    self._kvm.del_group(group.fd)
                group.unset_container()
            except OSError as error:
                # Closing the descriptors, which follows, lets everything go as well.
                log.warning(f"IOMMU group {number}: {error}")
            group.close()
        self._groups.clear()
        self._told_kvm.clear()
        if self._container is not None:
            self._container.close()
            self._container = None
        self._kvm.close()
