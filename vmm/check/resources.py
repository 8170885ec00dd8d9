"""What a guest takes of the host: memory, of which node, and descriptors."""

from __future__ import annotations

from vmm.errors import HostError
from vmm.host.descriptors import needed
from vmm.host.files import SYS_NODES
from vmm.host.finding import Finding, of_error, problem, warning
from vmm.host.preflight import MIB, free_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm.host.files import Host
    from vmm.settings.images import ImageSpec
    from vmm.settings.memory import MemoryConfig

DESCRIPTORS_USUAL = 1024
# For memory whose program asks for huge pages, as ours does; others' stays as it is.
SHMEM_ENABLED = "/sys/kernel/mm/transparent_hugepage/shmem_enabled"
# Settings that forbid user namespaces, the value that does and one that does not: of Debian's
# and Ubuntu's kernels and of everybody's (user_namespaces(7), namespaces(7)).
USER_NAMESPACES = (
    ("kernel.unprivileged_userns_clone", "0", "1"),
    ("kernel.apparmor_restrict_unprivileged_userns", "1", "0"),
    ("user.max_user_namespaces", "0", "10000"),
)


def descriptors(host: Host, vcpus: int, images: Sequence[ImageSpec]) -> Finding:
    """The limit of open files against what a machine has open before its guest runs."""
    need = needed(vcpus, images)
    limit = host.open_files_limit()
    told = f"{need} files will be open when the guest starts, and more for devices passed through"
    if limit is None or limit >= need:
        return Finding("descriptors", told)
    return problem(
        "descriptors", f"{told}; the limit is {limit} (Too many open files)",
        cure=[f"ulimit -n {max(need * 2, DESCRIPTORS_USUAL)}"], as_root=False,
        advice="for a service: LimitNOFILE= in its unit",
    )  # fmt: skip


def guest_ram(config: MemoryConfig, host: Host) -> list[Finding]:
    """The address space for guest RAM, on its node: mapped as a start does it, and given back.

    Nothing of it is touched, and no huge page of hugetlbfs taken.
    """
    from vmm.memory import map_ram, place

    if config.hugepages:
        return []
    plain = config.replace(prefault=False)
    try:
        memory = map_ram(plain)
        refused, backing = memory.refused, memory.backing
        place(memory, plain)
        memory.close()
    except HostError as error:
        return [of_error("memory", error)]
    if refused:
        return [_small_pages(refused, host)]
    if not config.thp:
        return [Finding("memory-pages", f"guest RAM ({backing}) in pages of 4 KiB: thp=off")]
    return [Finding("memory-pages", f"guest RAM ({backing}) may have huge pages")]


def _small_pages(refused: str, host: Host) -> Finding:
    """What the host does not allow, and what does without."""
    advice = ""
    for name, bad, good in USER_NAMESPACES:
        if host.text(f"/proc/sys/{name.replace('.', '/')}") == bad:
            advice = f"or let everybody have user namespaces: sysctl -w {name}={good}"
    return warning(
        "memory-pages",
        f"guest RAM will be in pages of 4 KiB, and the guest slower for it: {refused}",
        cure=[f"echo advise >{SHMEM_ENABLED}"], advice=advice,
    )  # fmt: skip


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
