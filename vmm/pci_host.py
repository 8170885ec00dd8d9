"""The host's PCI devices as sysfs shows them: from what a user names to what can be passed through.

Source: Documentation/driver-api/vfio.rst; Documentation/ABI/testing/sysfs-bus-pci.
"""

from __future__ import annotations

import os

from vmm.errors import ConfigError, HostError, VmmError
from vmm.record import Record
from vmm.vfio_backend import choose_cdevs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm.config_parse import DeviceSpec

SYS_DEVICES = "/sys/bus/pci/devices"
SYS_GROUPS = "/sys/kernel/iommu_groups"
SYS_CDEVS = "/sys/class/vfio-dev"
VFIO_DRIVER = "vfio-pci"
# Class code of PCI-to-PCI bridges: they stay with the host.
BRIDGE_CLASS = 0x0604
VARIABLE = "VLLMD_HYPERVISOR_DEVICE_FILEPATH_LIST"


class HostDevice(Record):
    """A device: PCI address, IOMMU group, and the driver that has it now (None for no driver).

    ``cdev``: its own file when it is used through iommufd, empty when through its group.
    """

    __slots__ = ("bdf", "cdev", "driver", "group")
    bdf: str
    group: int
    driver: str | None
    cdev: str

    def __init__(self, bdf: str, group: int, driver: str | None, cdev: str = "") -> None:
        self._set(bdf=bdf, group=group, driver=driver, cdev=cdev)


def find_devices(specs: Sequence[DeviceSpec]) -> list[HostDevice]:
    """All devices meant, in order. Everything that keeps one from the guest is told at once.

    ConfigError when a name stands for nothing, else HostError.
    """
    problems: list[str] = []
    kind: type[ConfigError] | type[HostError] = HostError
    found: dict[str, HostDevice] = {}
    for spec in specs:
        try:
            bdfs = _addresses(spec)
            for bdf in bdfs:
                if bdf in found:
                    raise ConfigError([f"{VARIABLE}={spec.value}: {bdf} is given twice"])
                found[bdf] = _look_up(spec, bdf)
        except VmmError as error:
            problems.append(str(error))
            if isinstance(error, ConfigError):
                kind = ConfigError
    for group in dict.fromkeys([device.group for device in found.values()]):
        problems += _group_problems(group)
    if problems:
        raise ConfigError(problems) if kind is ConfigError else HostError("\n".join(problems))
    cdevs = choose_cdevs(VARIABLE, specs, {bdf: device.group for bdf, device in found.items()})
    return [HostDevice(d.bdf, d.group, d.driver, cdevs.get(d.bdf, "")) for d in found.values()]


def _addresses(spec: DeviceSpec) -> list[str]:
    if spec.form == "bdf":
        return [spec.value.lower()]
    if spec.form == "sysfs":
        return [os.path.basename(os.path.realpath(spec.value))]
    if spec.form == "cdev":
        link = os.path.join(SYS_CDEVS, os.path.basename(spec.value), "device")
        if not os.path.exists(link):
            raise ConfigError(
                [
                    f"{VARIABLE}={spec.value}: there is no such VFIO device (cure: "
                    f"ls -l {SYS_CDEVS} shows those there are; {VFIO_DRIVER} gives a device one)"
                ]
            )
        return [os.path.basename(os.path.realpath(link))]
    members = group_members(int(os.path.basename(spec.value)))
    endpoints = [bdf for bdf in members if _class(bdf) != BRIDGE_CLASS]
    if not endpoints:
        raise ConfigError([f"{VARIABLE}={spec.value}: no device is in this IOMMU group"])
    return endpoints


def _look_up(spec: DeviceSpec, bdf: str) -> HostDevice:
    folder = os.path.join(SYS_DEVICES, bdf)
    if not os.path.isdir(folder):
        raise ConfigError([f"{VARIABLE}={spec.value}: this host has no PCI device {bdf}"])
    try:
        group = int(os.path.basename(os.readlink(os.path.join(folder, "iommu_group"))))
    except OSError:
        raise HostError(
            f"{VARIABLE}={spec.value}: {bdf} is in no IOMMU group: this host has no IOMMU, or it "
            "is switched off",
            "enable it in the firmware set-up, and boot with intel_iommu=on or amd_iommu=on",
        ) from None
    return HostDevice(bdf, group, driver_of(bdf))


def driver_of(bdf: str) -> str | None:
    """The driver bound to a device, None for none."""
    try:
        return os.path.basename(os.readlink(os.path.join(SYS_DEVICES, bdf, "driver")))
    except OSError:
        return None


def group_members(group: int) -> list[str]:
    """PCI addresses in an IOMMU group, ascending; empty when there is no such group."""
    try:
        return sorted(os.listdir(os.path.join(SYS_GROUPS, str(group), "devices")))
    except OSError:
        return []


def _class(bdf: str) -> int:
    try:
        with open(os.path.join(SYS_DEVICES, bdf, "class"), encoding="ascii") as file:
            return int(file.read(), 16) >> 8
    except (OSError, ValueError):
        return 0


def _group_problems(group: int) -> list[str]:
    """Members that a host driver has: the guest could not be kept apart from them."""
    return [
        f"{VARIABLE}: {bdf} of IOMMU group {group} is used by the host's driver {driver} (cure: "
        f"echo {bdf} >{SYS_DEVICES}/{bdf}/driver/unbind; echo {VFIO_DRIVER} "
        f">{SYS_DEVICES}/{bdf}/driver_override; echo {bdf} >/sys/bus/pci/drivers_probe)"
        for bdf in group_members(group)
        if (driver := driver_of(bdf)) not in (None, VFIO_DRIVER, "pci-stub", "pcieport")
    ] + [
        f"{VARIABLE}: {bdf} of IOMMU group {group} has no driver; {VFIO_DRIVER} must have it "
        f"(cure: modprobe {VFIO_DRIVER}; echo {VFIO_DRIVER} >{SYS_DEVICES}/{bdf}/driver_override; "
        f"echo {bdf} >/sys/bus/pci/drivers_probe)"
        for bdf in group_members(group)
        if driver_of(bdf) is None and _class(bdf) != BRIDGE_CLASS
    ]
