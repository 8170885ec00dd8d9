"""Devices to pass through: who has them now, and how far they are from guest RAM."""

from __future__ import annotations

import errno
import os

from vmm.errors import BusyError
from vmm.host.files import SYS_NODES
from vmm.host.finding import Finding, problem, warning
from vmm.host.pci import SYS_DEVICES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmm.check.files import Stop
    from vmm.host.files import Host


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
