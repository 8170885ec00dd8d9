"""What /proc and debugfs tell of a running VMM."""

from __future__ import annotations

from pathlib import Path

# Mappings as large as this are guest RAM.
RAM_MIN_KIB = 32 * 1024
KVM_STATISTICS = Path("/sys/kernel/debug/kvm")


def memory_kib(pid: int) -> dict[str, int]:
    """KiB by kind (pss, private), without the mappings as large as guest RAM."""
    found = {"pss": 0, "private": 0}
    size = 0
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        key, _, rest = line.partition(":")
        if key == "Size":
            size = int(rest.split()[0])
        elif size < RAM_MIN_KIB and key == "Pss":
            found["pss"] += int(rest.split()[0])
        elif size < RAM_MIN_KIB and key in ("Private_Dirty", "Private_Clean"):
            found["private"] += int(rest.split()[0])
    return found


def switches(pid: int) -> int:
    """Context switches of all threads so far, wanted and unwanted: each wakes a processor."""
    total = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        for line in status.read_text().splitlines():
            if "ctxt_switches" in line:
                total += int(line.split()[1])
    return total


def threads(pid: int) -> int:
    """How many threads it has."""
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def kvm_exits(pid: int) -> dict[str, int] | None:
    """KVM's own counts of exits of the process's VMs, by name; None where they are not readable.

    Source: Documentation/filesystems/debugfs, virt/kvm/kvm_main.c (kvm_create_vm_debugfs).
    """
    found: dict[str, int] = {}
    folders = list(KVM_STATISTICS.glob(f"{pid}-*"))
    for folder in folders:
        for path in folder.iterdir():
            if path.name.endswith("exits") and path.is_file():
                found[path.name] = found.get(path.name, 0) + int(path.read_text())
    return found if folders else None
