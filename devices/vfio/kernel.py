"""How the kernel's VFIO objects are opened: the seam at which a test hands in failing ones."""

from __future__ import annotations

from vmm._native.vfio.ioctls import VfioContainer, VfioGroup
from vmm._native.vfio.iommufd import CdevDevice, Iommufd


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
