"""By which interface of the kernel a VM has its devices: groups and a container, or iommufd."""

from __future__ import annotations

from vmm.memory import no_progress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from devices.vfio.dma import DmaDomain
    from devices.vfio.kernel import VfioKernel
    from vmm._native.kvm.vm import KvmVfio
    from vmm.host.pci import HostDevice
    from vmm.memory import Progress


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
