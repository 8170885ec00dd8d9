"""What must be true before a machine is built. `start` refuses by it, `check` shows it.

Each check takes what it looks at and yields findings; a start has no time for more than these.
"""

from __future__ import annotations

import os
import stat

from vmm.errors import SETTING_PREFIX as PREFIX
from vmm.errors import ConfigError
from vmm.host.disk import is_image
from vmm.host.files import HOST, KVM_PATH, SYS_NODES
from vmm.host.finding import Finding, problem, refuse
from vmm.host.image_format import conversion, foreign_format
from vmm.host.roles import FIELDS, file_roles
from vmm.layout import PCI_SLOTS
from vmm.light.printable import size_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm.host.files import Host
    from vmm.settings.config import Config
    from vmm.settings.images import ImageSpec
    from vmm.settings.memory import MemoryConfig
    from vmm.settings.parse import DeviceSpec

MIB = 1 << 20
# Beside the host bridge, the console and the random number generator.
DISKS_MAX = PCI_SLOTS - 3
SYS_HUGEPAGES = "/sys/kernel/mm/hugepages"
# What a node can give without swapping: free pages, and caches that are dropped for a guest.
NODE_AVAILABLE = ("MemFree:", "Active(file):", "Inactive(file):", "SReclaimable:")


def check_host(config: Config, host: Host = HOST) -> None:
    """ConfigError for what the settings get wrong, HostError for what the host lacks."""
    findings = kernel_files(config.kernel_path, config.initramfs_path)
    findings += images(config.system_images, config.config_images)
    ram = config.memory
    if config.placement is not None:
        from vmm.host import placement

        findings += placement.findings(
            config.placement, config.cpu_count, config.devices, ram, host
        )
        ram = placement.ram(ram, config.placement, config.devices, host)
    findings.append(memory(ram, host))
    if not host.usable(KVM_PATH):
        from vmm.host.nodes import kvm_node

        findings.append(kvm_node(host))
    if config.devices:
        disks = len(config.system_images) + len(config.config_images)
        findings += devices(config.devices, config.memory, host, disks)
    else:
        findings += locked(config.memory, host)
    refuse(findings)


def check_roles(config: Config) -> None:
    """ConfigError for each file with two roles; to be asked before the log opens its files."""
    refuse(file_roles({field: getattr(config, field) for field in FIELDS}))


def kernel_files(kernel: str | None, initramfs: str | None) -> list[Finding]:
    """Kernel and initramfs are files that can be read; None for one that is not set."""
    findings = []
    for variable, path in (("KERNEL_FILEPATH", kernel), ("INITRAMFS_FILEPATH", initramfs)):
        if path:
            why = _unreadable(path)
            if why is None and not stat.S_ISREG(os.stat(path).st_mode):
                why = "it is not a regular file"
            findings.append(_of_file("kernel-file", f"{PREFIX}{variable}={path}", path, why))
    return findings


def _of_file(name: str, told: str, path: str, why: str | None) -> Finding:
    if why is None:
        return Finding(name, told, path)
    return problem(name, f"{told}: {why}", path, code=ConfigError.exit_code)


def _unreadable(path: str, write: bool = False) -> str | None:
    """Why the file cannot be used, or None. ``write``: it must be writable as well."""
    try:
        os.stat(path)
    except OSError as error:
        return (error.strerror or str(error)).lower()
    if not os.access(path, os.R_OK):
        return "no permission to read it"
    if write and not os.access(path, os.W_OK):
        return "no permission to write it"
    return None


def images(system: Sequence[ImageSpec], config: Sequence[ImageSpec]) -> list[Finding]:
    """Disk images are raw files or block devices with the right permissions."""
    given = [("SYSTEM_IMAGE_FILEPATH", image, True) for image in system]
    given += [("CONFIG_IMAGE_FILEPATH", image, False) for image in config]
    findings = []
    serials: dict[str, str] = {}
    for variable, image, write in given:
        findings.append(_image(f"{PREFIX}{variable}: {image.path}", image, write))
        if image.serial is not None and image.serial in serials:
            told = f"{PREFIX}{variable}: serial={image.serial} is given to {serials[image.serial]}"
            findings.append(_of_file("image", told, image.path, f"and to {image.path}"))
        elif image.serial is not None:
            serials[image.serial] = image.path
    if len(given) > DISKS_MAX:
        findings.append(
            problem(
                "image", f"{PREFIX}SYSTEM_IMAGE_FILEPATH and {PREFIX}CONFIG_IMAGE_FILEPATH name "
                f"{len(given)} disks; the PCI bus has room for {DISKS_MAX}",
                advice="use fewer disks", code=ConfigError.exit_code,
            )
        )  # fmt: skip
    return findings


def _image(told: str, image: ImageSpec, write: bool) -> Finding:
    path = image.path
    why = _unreadable(path, write)
    if why is None:
        if not is_image(os.stat(path).st_mode):
            why = "neither a file nor a block device"
        elif image.format is None:
            return _raw_image(told, path)
    return _of_file("image", told, path, why)


def _raw_image(told: str, path: str) -> Finding:
    """The content is not that of another format; whoever knows better has said format=raw."""
    try:
        format_name = foreign_format(path)
    except OSError as error:
        return _of_file("image", told, path, (error.strerror or str(error)).lower())
    if format_name is None:
        return Finding("image", told, path)
    return problem(
        "image", f"{told}: it is a {format_name} image, not a raw one", path,
        cure=[conversion(path, format_name)], as_root=False, code=ConfigError.exit_code,
        advice=f"then give the raw image; if this one is raw all the same: {path},format=raw",
    )  # fmt: skip


def memory(config: MemoryConfig, host: Host) -> Finding:
    """The host has the guest's RAM to give."""
    setting = f"{PREFIX}MEMORY_CONFIG"
    node = config.host_numa_node
    if node is not None and not host.exists(f"{SYS_NODES}/node{node}"):
        return problem(
            "memory", f"{setting}: host_numa_node={node}: this host has no such node",
            advice=f"ls -d {SYS_NODES}/node* shows them",
        )  # fmt: skip
    if config.hugepages:
        return _huge_pages(config, host)
    available = free_bytes(host, node)
    where = "" if node is None else f" on node {node}"
    told = f"{setting}: size={size_text(config.size)}"
    if available is None or config.size <= available:
        shown = "unknown" if available is None else f"{available // MIB}M available{where}"
        return Finding("memory", f"{told}; {shown}")
    return problem(
        "memory",
        f"{told}, but only {available // MIB}M of memory are available{where}",
        advice="lower size, or free memory",
    )


def huge_page_folder(size: int, node: int | None) -> str:
    """Where the kernel counts pages of this many bytes, for the host or for a node."""
    base = SYS_HUGEPAGES if node is None else f"{SYS_NODES}/node{node}/hugepages"
    return f"{base}/hugepages-{size // 1024}kB"


def _huge_pages(config: MemoryConfig, host: Host) -> Finding:
    setting = f"{PREFIX}MEMORY_CONFIG"
    size = config.hugepage_size
    folder = huge_page_folder(size, config.host_numa_node)
    if not host.exists(folder):
        offered = ", ".join([name.removeprefix("hugepages-") for name in host.names(SYS_HUGEPAGES)])
        return problem(
            "memory",
            f"{setting}: hugepage_size={size_text(size)}: this host offers {offered or 'none'}",
            advice="use a size that it offers, or boot it with hugepagesz=",
        )
    wanted = config.size // size
    # Reserved pages are free and promised to others; nodes do not count them.
    reserved = host.number(f"{folder}/resv_hugepages") or 0
    free = (host.number(f"{folder}/free_hugepages") or 0) - reserved
    told = f"{setting}: {wanted} huge pages of {size // 1024} KiB are needed, {free} are free"
    if free >= wanted:
        return Finding("memory", told)
    total = (host.number(f"{folder}/nr_hugepages") or 0) + wanted - free
    return problem("memory", told, cure=[f"echo {total} >{folder}/nr_hugepages"])


def free_bytes(host: Host, node: int | None = None) -> int | None:
    """Memory that can be had without swapping: MemAvailable (proc(5)), or what a node has."""
    path = "/proc/meminfo" if node is None else f"{SYS_NODES}/node{node}/meminfo"
    text = host.text(path) or ""
    found = [
        text.partition(f"{key} ")[2].split(None, 1)[:1]
        for key in (("MemAvailable:",) if node is None else NODE_AVAILABLE)
    ]
    sizes = [int(size) * 1024 for sizes in found for size in sizes]
    return sum(sizes) if sizes else None


def locked(ram: MemoryConfig, host: Host) -> list[Finding]:
    """What mlock=on needs without devices; with them devices() tells of both."""
    if not ram.mlock:
        return []
    from vmm.host.memlock import memlock

    return [memlock(host, ram.size, 0, why="(mlock=on)")]


def devices(
    specs: Sequence[DeviceSpec], ram: MemoryConfig | None, host: Host, disks: int = 0
) -> list[Finding]:
    """What passing these devices through needs, beside so many disks on the guest's bus.

    ``ram`` None: RAM's size is not known.
    """
    from vmm.host import nodes, pci, vfio
    from vmm.host.memlock import memlock
    from vmm.host.vfio_backend import DEV_IOMMU
    from vmm.layout import ram_regions

    found, findings = pci.look_up_devices(specs, host)
    if disks <= DISKS_MAX < disks + len(found):
        told = f"{PREFIX}DEVICE_FILEPATH_LIST: {len(found)} devices and {disks} disks"
        findings.append(problem("device", f"{told}; the PCI bus has room for {DISKS_MAX}"))
    findings += vfio.modules(host, needed=True)
    remapping = vfio.interrupt_remapping(host)
    groups = dict.fromkeys([device.group for device in found])
    cdevs = [device.cdev for device in found if device.cdev]
    if cdevs:
        findings += [nodes.vfio_file(host, path) for path in (DEV_IOMMU, *cdevs)]
    else:
        opened = [nodes.vfio_group(host, group) for group in groups]
        findings.append(nodes.vfio_container(host))
        findings += [finding for finding in (*opened, remapping) if finding is not None]
    if found and ram is not None:
        regions = ram_regions(ram.size)
        ranges = [vfio.reserved_regions(host, group, regions) for group in groups]
        findings += [finding for finding in ranges if finding is not None]
        bars = sum([pci.bar_bytes(device.bdf, host) for device in found])
        # VFIO's container counts where mlock() does, so that RAM counts twice; iommufd does not.
        pinned = 2 * ram.size if ram.mlock and not cdevs else ram.size
        findings.append(memlock(host, pinned, bars, iommufd=bool(cdevs)))
    return findings
