"""The machine that a figure belongs to, and whether two results are of one machine."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Mapping
from pathlib import Path

KVM_MODULES = ("kvm_intel", "kvm_amd", "kvm_pvm")
KVM_PARAMETERS = ("nested", "ept", "npt", "enable_apicv", "avic", "tdp_mmu")
# What makes two hosts one; the kernel, the governor and the load may change.
IDENTITY = ("machine", "cpu", "cpus", "memory", "kvm")


def host_facts() -> dict[str, str]:
    """Facts as text; what this host does not tell is "unknown"."""
    return {
        "machine": machine(),
        "cpu": cpu_model(),
        "cpus": str(os.cpu_count()),
        "memory": f"{memory_gib():.0f} GiB",
        "kernel": platform.release(),
        "kvm": kvm_module(),
        "kvm parameters": parameters(),
        "governor": read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "huge pages": chosen(read("/sys/kernel/mm/transparent_hugepage/enabled")),
        "huge pages, shared": chosen(read("/sys/kernel/mm/transparent_hugepage/shmem_enabled")),
        "clock source": read("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
        "inside a virtual machine": "yes" if "hypervisor" in cpu_flags() else "no",
        "load": load(),
        "python": platform.python_version(),
    }


def read(path: str) -> str:
    """A file of one line."""
    try:
        return Path(path).read_text().strip() or "unknown"
    except OSError:
        return "unknown"


def chosen(text: str) -> str:
    """The word in brackets."""
    return text.partition("[")[2].partition("]")[0] or text


def machine() -> str:
    """A name for this machine that tells no other program its machine id (machine-id(5))."""
    text = read("/etc/machine-id")
    if text == "unknown":
        return text
    return hashlib.sha256(f"vllmd-hypervisor-bench {text}".encode()).hexdigest()[:16]


def _cpu_line(key: str) -> str:
    for line in read("/proc/cpuinfo").splitlines():
        if line.split(":")[0].strip() == key:
            return line.partition(":")[2].strip()
    return "unknown"


def cpu_model() -> str:
    """As /proc/cpuinfo names it."""
    return _cpu_line("model name")


def cpu_flags() -> list[str]:
    """Of the first processor."""
    return _cpu_line("flags").split()


def memory_gib() -> float:
    """All memory of the host."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / (1 << 30)


def kvm_module() -> str:
    """Which KVM it is, and whether it can be used."""
    found = [name for name in KVM_MODULES if Path("/sys/module", name).exists()]
    name = " ".join(found) or ("kvm" if Path("/sys/module/kvm").exists() else "none")
    return name if os.path.exists("/dev/kvm") else f"{name}, no /dev/kvm"


def parameters() -> str:
    """Parameters of KVM that change what an exit or a page fault costs."""
    found = [f"halt_poll_ns={read('/sys/module/kvm/parameters/halt_poll_ns')}"]
    for module in KVM_MODULES:
        for name in KVM_PARAMETERS:
            value = read(f"/sys/module/{module}/parameters/{name}")
            if value != "unknown":
                found.append(f"{name}={value}")
    return " ".join(found)


def load() -> str:
    """Processes that want a processor, over the last minute."""
    return f"{os.getloadavg()[0]:.2f}"


def differences(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """Why two results are not of one host; empty where they are."""
    return [
        f"{name}: {old.get(name, 'unknown')} and {new.get(name, 'unknown')}"
        for name in IDENTITY
        if old.get(name) != new.get(name)
    ]
