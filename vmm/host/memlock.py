"""RLIMIT_MEMLOCK: what VFIO pins for a guest counts against it, and what mlock=on locks.

VFIO's container counts the process's pages, iommufd those of all the user's processes, and device
memory as well. CAP_IPC_LOCK frees from both. Source: drivers/vfio/vfio_iommu_type1.c,
drivers/iommu/iommufd/pages.c.
"""

from __future__ import annotations

from vmm.host.finding import Finding, problem

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmm.host.files import Host

MIB = 1 << 20
LIMITS = "/etc/security/limits.d/vllmd-hypervisor-{}.conf"  # limits.conf(5)


def memlock(
    host: Host, ram: int, bars: int, iommufd: bool = False, why: str = "for devices"
) -> Finding:
    """The limit against ``ram`` bytes of guest RAM and, under iommufd, ``bars`` of devices.

    The cure allows both, so that it holds for either interface.
    """
    need = ram + bars if iommufd else ram
    told = f"{_mib(need)} MiB will be locked {why}"
    if host.may_lock_everything():
        return Finding("memlock", f"{told}; CAP_IPC_LOCK: no limit")
    soft, hard = host.locked_memory_limits()
    if soft is None:
        return Finding("memlock", f"{told}; no limit")
    if soft >= need:
        return Finding("memlock", f"{told}; the limit is {soft // MIB} MiB")
    limit = _mib(ram + bars) * 1024
    found = f"{told}, but RLIMIT_MEMLOCK is {soft // MIB} MiB"
    if hard is None or hard >= need:
        return problem("memlock", found, cure=[f"ulimit -S -l {limit}"], as_root=False)
    user = host.user()
    who = f"{user}:{user}" if user.isdigit() else user
    return problem(
        "memlock", found, cure=[f"echo '{who} - memlock {limit}' >{LIMITS.format(user)}"],
        advice=f"log in again; for a service: LimitMEMLOCK={limit}K in its unit (and in "
        "user@.service, for a user's)",
    )  # fmt: skip


def _mib(size: int) -> int:
    return -(-size // MIB)
