"""Checks of the host that `start` leaves to the parts that need them: KVM, RAM, devices in use."""

from __future__ import annotations

import errno
import os

from vmm.errors import BusyError, HostError
from vmm.host import nodes
from vmm.host.finding import Finding, of_error, problem, warning
from vmm.host.pci import SYS_DEVICES
from vmm.host.preflight import MIB, SYS_NODES, free_bytes
from vmm.layout import DISK_QUEUES_MAX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmm.check.files import Stop
    from vmm.host.files import Host
    from vmm.settings.memory import MemoryConfig

# What a VMM has open: standard streams, KVM, its lock, sockets, event loop, lines, consoles.
DESCRIPTORS = 24
DESCRIPTORS_USUAL = 1024
NATIVE_ADVICE = "use a host whose KVM drives the processor's own virtualisation"


def kvm(host: Host, vcpus: int | None) -> list[Finding]:
    """KVM's version and capabilities, whether it executes kernels, and whether ``vcpus`` fit.

    Opens the real /dev/kvm, and runs a guest of a few instructions for some ms.
    """
    from vmm.check.probe import can_run_kernels
    from vmm.host.kvm import KVM_API_VERSION, check_vcpu_count, max_vcpus, open_kvm

    if nodes.kvm_node(host).code:
        return []  # told by its own finding
    try:
        opened = open_kvm()
    except HostError as error:
        return [of_error("kvm", error)]
    findings = []
    try:
        told = f"KVM API {KVM_API_VERSION} with all capabilities needed"
        findings.append(Finding("kvm", f"{told}; up to {max_vcpus(opened)} vCPUs"))
        if vcpus is not None:
            check_vcpu_count(opened, vcpus)
            _check_tables(vcpus)
            findings.append(_vcpus(vcpus, len(os.sched_getaffinity(0))))
    except HostError as error:
        findings.append(of_error("vcpus", error))
    finally:
        opened.close()
    good, why = can_run_kernels()
    if good:
        findings.append(Finding("kvm-native", "KVM executes kernel code"))
    else:
        found = f"guest kernels will not run: {why}"
        findings.append(warning("kvm-native", found, advice=NATIVE_ADVICE))
    return findings


def _check_tables(vcpus: int) -> None:
    """HostError when the tables that describe so many vCPUs have no room."""
    from vmm._native.host.posix import host_cpuid
    from vmm.acpi.spec import AcpiSpec
    from vmm.acpi.tables import build_acpi
    from vmm.layout import HIGH_MEMORY_GPA, ged_gpa
    from vmm.x86 import cpuid

    apic_ids = cpuid.flat_topology(vcpus).apic_ids()
    place = ged_gpa(cpuid.guest_phys_bits(host_cpuid))
    build_acpi(AcpiSpec(apic_ids, (HIGH_MEMORY_GPA, HIGH_MEMORY_GPA), place))


def descriptors(host: Host, vcpus: int, disks: int) -> Finding:
    """The limit of open files against what a machine has open before its guest runs."""
    queues = min(vcpus, DISK_QUEUES_MAX)
    need = DESCRIPTORS + 2 * vcpus + disks * (2 + 2 * queues)
    limit = host.open_files_limit()
    told = f"{need} files will be open when the guest starts, and more for devices passed through"
    if limit is None or limit >= need:
        return Finding("descriptors", told)
    return problem(
        "descriptors", f"{told}; the limit is {limit} (Too many open files)",
        cure=[f"ulimit -n {max(need * 2, DESCRIPTORS_USUAL)}"], as_root=False,
        advice="for a service: LimitNOFILE= in its unit",
    )  # fmt: skip


def guest_ram(config: MemoryConfig) -> list[Finding]:
    """The address space for guest RAM, on its node: mapped as a start does it, and given back.

    Nothing of it is touched, and no huge page taken.
    """
    from vmm.memory import allocate

    if config.hugepages:
        return []
    try:
        allocate(config.replace(prefault=False)).close()
    except HostError as error:
        return [of_error("memory", error)]
    return []


def _vcpus(count: int, processors: int) -> Finding:
    told = f"CPU_COUNT={count}, of {processors} processors"
    if count <= processors:
        return Finding("vcpus", told)
    return warning("vcpus", f"{told}: they will wait for each other", advice="lower CPU_COUNT")


def memory_nodes(host: Host) -> list[Finding]:
    """Available memory and huge pages of each NUMA node."""
    findings = []
    nodes = [name[4:] for name in host.names(SYS_NODES) if name[:4] == "node"]
    for number in sorted([int(name) for name in nodes if name.isdigit()]):
        available = free_bytes(host, number)
        told = [f"node {number}: {'?' if available is None else available // MIB}M available"]
        folder = f"{SYS_NODES}/node{number}/hugepages"
        for size in host.names(folder):
            free = host.number(f"{folder}/{size}/free_hugepages")
            total = host.number(f"{folder}/{size}/nr_hugepages")
            told.append(f"{free} of {total} huge pages of {size.removeprefix('hugepages-')} free")
        findings.append(Finding("numa-node", "; ".join(told), str(number)))
    return findings


def device_nodes(host: Host, bdfs: Iterable[str], node: int | None) -> list[Finding]:
    """Devices whose NUMA node guest RAM (bound to ``node``, if any) may not be on."""
    if len([name for name in host.names(SYS_NODES) if name[4:].isdigit()]) < 2:
        return []
    findings = []
    for bdf in bdfs:
        own = host.text(f"{SYS_DEVICES}/{bdf}/numa_node")
        if own is None or not own.isdigit():
            continue  # -1: the firmware does not tell
        where = "any node" if node is None else f"node {node}"
        told = f"{bdf} is on node {own}, guest RAM on {where}"
        if own == str(node):
            findings.append(Finding("device-node", told, bdf))
        else:
            advice = f"host_numa_node={own} in VLLMD_HYPERVISOR_MEMORY_CONFIG"
            findings.append(warning("device-node", told, bdf, advice=advice))
    return findings


def groups_in_use(host: Host, groups: Iterable[int], stop: Stop) -> list[Finding]:
    """IOMMU groups that another process has: only one may open them."""
    findings = []
    for group in groups:
        path = f"/dev/vfio/{group}"
        if not host.exists(path) or not host.usable(path):
            continue  # told by the node's own finding
        if host.open_error(path) == errno.EBUSY:
            commands, as_root = stop(openers(host, path))
            findings.append(
                problem(
                    "vfio-group", f"{path} is in use by another process", path, cure=commands,
                    as_root=as_root, advice="stop the other VM first", code=BusyError.exit_code,
                )
            )  # fmt: skip
        else:
            findings.append(Finding("vfio-group", f"{path} is not in use by others", path))
    return findings


def openers(host: Host, path: str) -> list[int]:
    """Processes that have a file open, as far as this user may see them."""
    found = []
    for pid in [int(name) for name in host.names("/proc") if name.isdigit()]:
        for fd in host.names(f"/proc/{pid}/fd"):
            try:
                if os.readlink(f"{host.root}/proc/{pid}/fd/{fd}") == path:
                    found.append(pid)
                    break
            except OSError:
                continue
    return found
