"""Which of VFIO's interfaces a VM's devices are opened by: groups in a container, or iommufd.

One VM has one of them, because its devices share one set of DMA mappings. A device's own file,
/dev/vfio/devices/vfioN, stands for iommufd; a group, /dev/vfio/N, for the container. A PCI address
takes iommufd when another device of the list asks for it, or when the kernel has no groups
(CONFIG_VFIO_GROUP off), else the container.
Source: Documentation/driver-api/vfio.rst ("VFIO Device cdev"), Documentation/userspace-api/iommufd.
"""

from __future__ import annotations

from vmm.errors import ConfigError, HostError
from vmm.host.files import HOST

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from vmm.host.files import Host
    from vmm.settings.parse import DeviceSpec

SYS_DEVICES = "/sys/bus/pci/devices"
DEV_IOMMU = "/dev/iommu"
DEV_VFIO = "/dev/vfio"
NEEDS = "Linux 6.6 with CONFIG_IOMMUFD and CONFIG_VFIO_DEVICE_CDEV"


def choose_cdevs(
    variable: str, specs: Iterable[DeviceSpec], groups: Mapping[str, int], host: Host = HOST
) -> dict[str, str]:
    """The devices' own files by PCI address when iommufd is used, nothing when groups are.

    ``groups``: IOMMU groups by PCI address. ConfigError for a list that asks for both, HostError
    when this host does not offer what the list asks for.
    """
    by_form: dict[str, str] = {}
    for spec in specs:
        by_form.setdefault(spec.form, spec.value)
    if "cdev" not in by_form:
        if "group" in by_form or not groups or _has_groups(groups, host):
            return {}
        return {bdf: cdev_of(bdf, host) for bdf in groups} if _has_iommufd(groups, host) else {}
    if "group" in by_form:
        raise ConfigError(
            [
                f"{variable}: {by_form['group']} is a group and {by_form['cdev']} a device by "
                "itself: the kernel keeps their DMA mappings apart, and one VM has one set (cure: "
                "name all devices by their PCI addresses, or all by their /dev/vfio/devices/vfioN)"
            ]
        )
    lacking = [path for path in (DEV_IOMMU, by_form["cdev"]) if not host.exists(path)]
    if lacking:
        raise HostError(
            f"{variable}={by_form['cdev']}: there is no {lacking[0]}",
            f"modprobe iommufd, where the kernel has it ({NEEDS}; Debian's kernels are without); "
            f"else name the device by its PCI address: {next(iter(groups), 'BDF')}",
        )
    cdevs = {bdf: cdev_of(bdf, host) for bdf in groups}
    for bdf, path in cdevs.items():
        if not path:
            raise HostError(
                f"{variable}: {bdf} has no file in {DEV_VFIO}/devices, and other devices of the "
                "list are used by theirs",
                "name all devices by their PCI addresses",
            )
    return cdevs


def cdev_of(bdf: str, host: Host = HOST) -> str:
    """/dev/vfio/devices/vfioN of a device that a VFIO driver has; empty when it has none."""
    paths = [f"{DEV_VFIO}/devices/{name}" for name in host.names(f"{SYS_DEVICES}/{bdf}/vfio-dev")]
    return next((path for path in paths if host.exists(path)), "")


def _has_groups(groups: Mapping[str, int], host: Host) -> bool:
    return all(host.exists(f"{DEV_VFIO}/{group}") for group in groups.values())


def _has_iommufd(groups: Mapping[str, int], host: Host) -> bool:
    return host.exists(DEV_IOMMU) and all(cdev_of(bdf, host) for bdf in groups)
