"""What VFIO needs of the host as a whole: an IOMMU, modules, interrupts that devices cannot forge.

Source: Documentation/driver-api/vfio.rst; drivers/vfio/vfio_iommu_type1.c.
"""

from __future__ import annotations

from vmm.host.finding import Finding, problem, warning

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmm.host.files import Host

GROUPS = "/sys/kernel/iommu_groups"
DRIVER = "/sys/bus/pci/drivers/vfio-pci"
TYPE1 = "/sys/module/vfio_iommu_type1"
IOMMUFD = "/dev/iommu"
UNSAFE = "/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts"
ENABLE_IOMMU = "enable it in the firmware set-up; on Intel's processors boot with intel_iommu=on"
# A kind of reserved region that VFIO takes for granted that nobody needs.
RELAXABLE = "direct-relaxable"


def iommu(host: Host) -> Finding:
    """Is there an IOMMU that keeps devices apart? A warning: devices tell it as a problem."""
    groups = host.names(GROUPS)
    if not groups:
        found = "no IOMMU groups: this host has no IOMMU, or it is switched off"
        return warning("iommu", found, advice=ENABLE_IOMMU)
    units = ", ".join(host.names("/sys/class/iommu")) or "unknown units"
    return Finding("iommu", f"{len(groups)} IOMMU groups ({units})")


def modules(host: Host, needed: bool) -> list[Finding]:
    """The kernel modules, loaded or built in. ``needed``: a device is configured.

    That vfio-pci is missing hinders only devices that it does not have yet, which they tell.
    """
    found = []
    for name, path in (("vfio-pci", DRIVER), ("vfio_iommu_type1", TYPE1)):
        if host.exists(path):
            found.append(Finding("vfio-module", f"{name} is loaded", name))
            continue
        # iommufd may stand in for type 1.
        fatal = needed and path == TYPE1 and not host.exists(IOMMUFD)
        make = problem if fatal else warning
        text = f"the kernel module {name} is not loaded"
        found.append(make("vfio-module", text, name, cure=[f"modprobe {name}"]))
    return found


def interrupt_remapping(host: Host) -> Finding | None:
    """Whether a device is kept from forging interrupts; None while that cannot be told.

    Interrupt controllers behind remapping are called IR-… in /proc/interrupts.
    """
    name = "interrupt-remapping"
    unsafe = host.text(UNSAFE)
    text = host.text("/proc/interrupts")
    if text is None or unsafe is None:
        return None
    if " IR-" in text:
        return Finding(name, "the IOMMU remaps interrupts")
    found = "the IOMMU does not remap interrupts: a guest's device could forge the host's"
    if unsafe == "Y":
        return warning(name, f"{found}; allow_unsafe_interrupts accepts that", advice=REMAP)
    return problem(name, found, cure=[f"echo Y >{UNSAFE}"], advice=f"that accepts it; or {REMAP}")


def reserved_regions(host: Host, group: int, ram: list[tuple[int, int]]) -> Finding | None:
    """Whether guest RAM, as (gpa, size), stays clear of addresses that the IOMMU cannot map.

    None while the group is not to be seen.
    Source: Documentation/ABI/testing/sysfs-kernel-iommu_groups.
    """
    text = host.text(f"{GROUPS}/{group}/reserved_regions")
    if text is None:
        return None
    met = []
    for line in text.split("\n"):
        fields = line.split()
        if len(fields) != 3 or fields[2] == RELAXABLE:
            continue
        first, last = int(fields[0], 16), int(fields[1], 16)
        if any(first < gpa + size and gpa <= last for gpa, size in ram):
            met.append(f"[{first:#x}, {last:#x}] ({fields[2]})")
    name, subject = "iommu-range", str(group)
    if not met:
        return Finding(name, f"IOMMU group {group} can reach all guest RAM", subject)
    return problem(
        name, f"IOMMU group {group} cannot reach guest RAM at {', '.join(met)}", subject,
        advice="lower size in VLLMD_HYPERVISOR_MEMORY_CONFIG",
    )  # fmt: skip


REMAP = "switch interrupt remapping on: firmware set-up, and no intremap=off at boot"
