"""The host's PCI devices as sysfs shows them: from what a user names to what can be passed through.

Source: Documentation/driver-api/vfio.rst; Documentation/ABI/testing/sysfs-bus-pci.
"""

from __future__ import annotations

import os

from vmm.errors import ConfigError, VmmError
from vmm.host.files import HOST
from vmm.host.finding import Finding, problem, refuse, warning
from vmm.host.vfio import DRIVER, ENABLE_IOMMU
from vmm.host.vfio_backend import choose_cdevs
from vmm.light.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm.host.files import Host
    from vmm.settings.parse import DeviceSpec

SYS_DEVICES = "/sys/bus/pci/devices"
SYS_GROUPS = "/sys/kernel/iommu_groups"
SYS_CDEVS = "/sys/class/vfio-dev"
VFIO_DRIVER = "vfio-pci"
# Drivers that use nothing of the group, as the kernel sees it (vfio_dev_viable()).
HARMLESS_DRIVERS = ("pci-stub", "pcieport")
# Class code of PCI-to-PCI bridges: they stay with the host.
BRIDGE_CLASS = 0x0604
# Base classes nobody passes through: bridges, system peripherals, processors, signal processing.
HOST_CLASSES = (0x06, 0x08, 0x0B, 0x11)
VARIABLE = "VLLMD_HYPERVISOR_DEVICE_FILEPATH_LIST"
BAR_COUNT = 6
IORESOURCE_MEM = 0x200


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


def find_devices(specs: Sequence[DeviceSpec], host: Host = HOST) -> list[HostDevice]:
    """All devices meant, in order. Everything that keeps one from the guest is told at once.

    ConfigError when a name stands for nothing, else HostError.
    """
    devices, findings = look_up_devices(specs, host)
    refuse(findings)
    return devices


def look_up_devices(
    specs: Sequence[DeviceSpec], host: Host
) -> tuple[list[HostDevice], list[Finding]]:
    """The devices that exist and have an IOMMU group; what is to be said of them and of others."""
    findings: list[Finding] = []
    found: dict[str, HostDevice] = {}
    for spec in specs:
        bdfs = _addresses(spec, host)
        if not bdfs:
            findings.append(_bad_name(spec, f"{VARIABLE}={spec.value}: {_nothing(spec)}"))
        for bdf in bdfs:
            if bdf in found:
                findings.append(_bad_name(spec, f"{VARIABLE}={spec.value}: {bdf} is given twice"))
                continue
            finding = _look_up(spec, bdf, host)
            findings.append(finding)
            group = host.link(f"{SYS_DEVICES}/{bdf}/iommu_group")
            if group is not None and finding.code != ConfigError.exit_code:
                found[bdf] = HostDevice(bdf, int(group), driver_of(bdf, host))
                findings.append(reset_methods(bdf, host))
    for group_number in dict.fromkeys([device.group for device in found.values()]):
        findings += group_findings(group_number, list(found), host)
    try:
        groups = {bdf: device.group for bdf, device in found.items()}
        cdevs = choose_cdevs(VARIABLE, specs, groups, host)
    except VmmError as error:
        findings.append(problem("vfio-interface", str(error), code=error.exit_code))
        cdevs = {}
    found = {
        bdf: HostDevice(bdf, device.group, device.driver, cdevs.get(bdf, ""))
        for bdf, device in found.items()
    }
    return list(found.values()), findings


def _bad_name(spec: DeviceSpec, text: str) -> Finding:
    return problem("device", text, spec.value, code=ConfigError.exit_code)


def _addresses(spec: DeviceSpec, host: Host) -> list[str]:
    if spec.form == "bdf":
        return [spec.value.lower()]
    if spec.form == "sysfs":
        return [os.path.basename(os.path.realpath(host.root + spec.value))]
    if spec.form == "cdev":
        link = f"{host.root}{SYS_CDEVS}/{os.path.basename(spec.value)}/device"
        return [os.path.basename(os.path.realpath(link))] if os.path.exists(link) else []
    members = group_members(int(os.path.basename(spec.value)), host)
    return [bdf for bdf in members if _class(bdf, host) != BRIDGE_CLASS]


def _nothing(spec: DeviceSpec) -> str:
    if spec.form == "cdev":
        return (
            f"there is no such VFIO device (cure: ls -l {SYS_CDEVS} shows those there are; "
            f"{VFIO_DRIVER} gives a device one)"
        )
    return "no device is in this IOMMU group"


def _look_up(spec: DeviceSpec, bdf: str, host: Host) -> Finding:
    folder = f"{SYS_DEVICES}/{bdf}"
    if not host.exists(folder):
        return _bad_name(spec, f"{VARIABLE}={spec.value}: this host has no PCI device {bdf}")
    if _class(bdf, host) == BRIDGE_CLASS:
        return _bad_name(
            spec, f"{VARIABLE}={spec.value}: {bdf} is a PCI bridge, which stays with the host"
        )
    if host.link(f"{folder}/iommu_group") is None:
        return problem(
            "device",
            f"{VARIABLE}={spec.value}: {bdf} is in no IOMMU group: this host has no IOMMU, or it "
            "is switched off",
            bdf,
            advice=ENABLE_IOMMU,
        )
    return Finding("device", describe(bdf, host), bdf)


def describe(bdf: str, host: Host) -> str:
    """Address, identity, group and driver on one line."""
    folder = f"{SYS_DEVICES}/{bdf}"
    vendor, device = [
        (host.text(f"{folder}/{name}") or "?").removeprefix("0x") for name in ("vendor", "device")
    ]
    return (
        f"{bdf} [{vendor}:{device}] class {_class(bdf, host):04x}, IOMMU group "
        f"{host.link(f'{folder}/iommu_group')}, driver {driver_of(bdf, host) or 'none'}"
    )


def driver_of(bdf: str, host: Host = HOST) -> str | None:
    """The driver bound to a device, None for none."""
    return host.link(f"{SYS_DEVICES}/{bdf}/driver")


def is_vfio(driver: str | None) -> bool:
    """True for vfio-pci and its variants for single devices (mlx5_vfio_pci, …)."""
    return driver is not None and driver.replace("_", "-").endswith(VFIO_DRIVER)


def group_members(group: int, host: Host = HOST) -> list[str]:
    """PCI addresses in an IOMMU group, ascending; empty when there is no such group."""
    return host.names(f"{SYS_GROUPS}/{group}/devices")


def bar_bytes(bdf: str, host: Host = HOST) -> int:
    """Device memory behind the BARs."""
    total = 0
    for line in (host.text(f"{SYS_DEVICES}/{bdf}/resource") or "").split("\n")[:BAR_COUNT]:
        fields = [int(field, 16) for field in line.split()]
        if len(fields) == 3 and fields[2] & IORESOURCE_MEM:
            total += fields[1] - fields[0] + 1
    return total


def reset_methods(bdf: str, host: Host) -> Finding:
    """How the device can be reset, in the order in which the kernel tries."""
    methods = (host.text(f"{SYS_DEVICES}/{bdf}/reset_method") or "").split()
    if methods:
        return Finding("device-reset", f"{bdf} is reset by {', '.join(methods)}", bdf)
    if host.exists(f"{SYS_DEVICES}/{bdf}/reset"):
        return Finding("device-reset", f"{bdf} can be reset", bdf)
    return warning(
        "device-reset", f"{bdf} cannot be reset: one guest's state in it reaches the next", bdf,
        advice="restart the host between guests that do not trust each other",
    )  # fmt: skip


def identity(bdf: str, host: Host = HOST) -> tuple[int, int]:
    """(vendor, class and subclass) of a device; zeros where sysfs does not say."""
    return _number(bdf, "vendor", host), _class(bdf, host)


def _class(bdf: str, host: Host) -> int:
    return _number(bdf, "class", host) >> 8


def _number(bdf: str, name: str, host: Host) -> int:
    try:
        return int(host.text(f"{SYS_DEVICES}/{bdf}/{name}") or "", 16)
    except ValueError:
        return 0


def group_findings(group: int, given: list[str], host: Host) -> list[Finding]:
    """All members with their drivers; a problem for each that keeps the group from a guest.

    While a host driver has a member, the guest could not be kept apart from it. ``given``: the
    members that the guest gets.
    """
    members = group_members(group, host)
    drivers = {bdf: driver_of(bdf, host) for bdf in members}
    told = ", ".join([f"{bdf} ({drivers[bdf] or 'no driver'})" for bdf in members])
    findings = [Finding("iommu-group", f"IOMMU group {group}: {told}", str(group))]
    for bdf, driver in drivers.items():
        bridge = _class(bdf, host) == BRIDGE_CLASS
        if is_vfio(driver) or (bridge and driver in (None, *HARMLESS_DRIVERS)):
            continue
        if driver is None:
            what = f"has no driver; {VFIO_DRIVER} must have it"
        elif driver not in HARMLESS_DRIVERS:
            what = f"is used by the host's driver {driver}"
        elif bdf in given:
            what = f"is kept by the driver {driver}; {VFIO_DRIVER} must have it"
        else:
            continue
        findings.append(
            problem(
                "group-member", f"{VARIABLE}: {bdf} of IOMMU group {group} {what}", bdf,
                cure=bind_commands(bdf, driver, host),
            )
        )  # fmt: skip
    return findings


def bind_commands(bdf: str, driver: str | None, host: Host) -> list[str]:
    """What root types to give a device to vfio-pci, until the next boot."""
    folder = f"{SYS_DEVICES}/{bdf}"
    return [
        *([] if host.exists(DRIVER) else [f"modprobe {VFIO_DRIVER}"]),
        *([f"echo {bdf} >{folder}/driver/unbind"] if driver else []),
        f"echo {VFIO_DRIVER} >{folder}/driver_override",
        f"echo {bdf} >/sys/bus/pci/drivers_probe",
    ]


def candidates(host: Host) -> list[Finding]:
    """Devices that could be passed through, with whom they share their group."""
    findings = []
    for bdf in host.names(SYS_DEVICES):
        group = host.link(f"{SYS_DEVICES}/{bdf}/iommu_group")
        if group is None or _class(bdf, host) >> 8 in HOST_CLASSES:
            continue
        others = [m for m in group_members(int(group), host) if m != bdf]
        others = [m for m in others if _class(m, host) != BRIDGE_CLASS]
        shared = f"; with {', '.join(others)}" if others else ""
        findings.append(Finding("candidate", f"{describe(bdf, host)}{shared}", bdf))
    return findings
