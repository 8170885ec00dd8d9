"""How the kernel's VFIO objects are opened: the seam at which a test hands in failing ones."""

from __future__ import annotations

from vmm._native.iommufd import CdevDevice, Iommufd
from vmm._native.vfio import VfioContainer, VfioGroup
from vmm.memory import no_progress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from devices.vfio.dma import DmaDomain
    from vmm._native.kvm import KvmVfio
    from vmm.memory import Progress
    from vmm.pci_host import HostDevice


class VfioKernel:
    """Opens files; OSError when that fails. A group's devices come from the group."""

    def container(self) -> VfioContainer:
        """/dev/vfio/vfio."""
        return VfioContainer.open()

    def group(self, path: str) -> VfioGroup:
        """/dev/vfio/N."""
        return VfioGroup.open(path)

    def iommufd(self) -> Iommufd:
        """/dev/iommu."""
        return Iommufd.open()

    def cdev(self, path: str) -> CdevDevice:
        """/dev/vfio/devices/vfioN."""
        return CdevDevice.open(path)


def open_domain(
    kvm: KvmVfio,
    kernel: VfioKernel,
    hosts: Sequence[HostDevice],
    progress: Progress = no_progress,
) -> DmaDomain:
    """An empty domain by the interface that these devices are used by."""
    if any(host.cdev for host in hosts):
        from devices.vfio.iommufd import IommufdDomain

        return IommufdDomain(kvm, kernel, progress)
    from devices.vfio.container import ContainerDomain

    return ContainerDomain(kvm, kernel, progress)
