"""Inside the lab: all exits of one boot under one VMM, by device and cause, as a JSON line.

The kernel's own trace of KVM is asked, so that what KVM answers itself is counted as well, and any
VMM's exits alike. Source: arch/x86/kvm/trace.h; Documentation/trace/histogram.rst; AMD64
Architecture Programmer's Manual, volume 2, appendix C; Intel SDM, volume 3, appendix C.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections import Counter
from pathlib import Path

from benchmarks.inside_lab import MEMORY, run
from vmm import layout

TRACING = Path("/sys/kernel/tracing")
# Event, and what tells its entries apart.
KEYS = {
    "kvm_exit": "isa,exit_reason",
    "kvm_pio": "rw,port",
    "kvm_mmio": "type,gpa",
    "kvm_msr": "ecx",
    "kvm_userspace_exit": "reason",
}
SIZE = 8192
ENTRY = re.compile(r"^\{ (?P<keys>.*?) \} hitcount: +(?P<count>\d+)", re.MULTILINE)
# The kernel shows some fields as `name [number]`.
FIELD = re.compile(r"(\w+): +(?:[\w ]*\[ *)?(-?(?:0x)?[0-9a-f]+)")
SVM = 2
REASONS = {
    SVM: {0x60: "host's interrupts", 0x64: "interrupt windows", 0x72: "CPUID", 0x78: "HLT"},
    1: {1: "host's interrupts", 7: "interrupt windows", 10: "CPUID", 12: "HLT"},
}
# Those that the other events tell apart: ports, MSRs, MMIO.
TOLD = {SVM: (0x7B, 0x7C), 1: (30, 31, 32, 49)}
FAULTS = {SVM: (0x400,), 1: (48,)}
MMIO_READ_BEGINS = 0
USER_EXITS = {2: "ports", 6: "MMIO"}
PORTS = (
    (layout.COM1_PORT, layout.COM1_SIZE, "COM1"),
    (0x2F8, 8, "COM2 to COM4, absent"),
    (0x3E8, 8, "COM2 to COM4, absent"),
    (0x2E8, 8, "COM2 to COM4, absent"),
    (layout.I8042_PORT, layout.I8042_SIZE, "i8042"),
    (layout.CMOS_PORT, layout.CMOS_SIZE, "CMOS"),
    (layout.PCI_CONFIG_PORT, 4, "PCI configuration, address"),
    (layout.PCI_CONFIG_PORT + 4, 4, "PCI configuration, data"),
    (layout.ACPI_PORT, layout.ACPI_PORT_SIZE, "ACPI registers"),
    (layout.PM_TIMER_PORT, layout.PM_TIMER_SIZE, "PM timer"),
)
ADDRESSES = (
    (layout.MMIO32_GPA, layout.MMIO32_SIZE, "virtio registers"),
    (layout.ECAM_GPA, layout.ECAM_SIZE, "PCI configuration, ECAM"),
    (layout.IOAPIC_GPA, layout.PAGE_SIZE, "IOAPIC (in KVM)"),
    (layout.LAPIC_GPA, layout.PAGE_SIZE, "LAPIC (in KVM)"),
    (1 << 32, 1 << 52, "virtio registers"),
)
MSRS = (
    (0x6E0, 1, "TSC deadline"),
    (0x800, 0x100, "x2APIC"),
    (0xFE, 1, "MTRR"),
    (0x200, 0x70, "MTRR"),
    (0x2FF, 1, "MTRR"),
)
Ranges = tuple[tuple[int, int, str], ...]
Found = dict[str, Counter[tuple[int, ...]]]


class Tracing:
    """KVM's histograms while the block runs; then ``found`` by event, of the keys' values."""

    def __init__(self) -> None:
        self.found: Found = {}

    def __enter__(self) -> Tracing:
        if not (TRACING / "events").exists():
            subprocess.run(["mount", "-t", "tracefs", "tracefs", str(TRACING)], check=True)
        for event, keys in KEYS.items():
            self._of(event, "trigger").write_text(f"hist:keys={keys}:size={SIZE}\n")
        return self

    def __exit__(self, *exception: object) -> None:
        for event, keys in KEYS.items():
            self.found[event] = entries(self._of(event, "hist").read_text(), keys.split(","))
            self._of(event, "trigger").write_text(f"!hist:keys={keys}:size={SIZE}\n")

    def _of(self, event: str, file: str) -> Path:
        return TRACING / "events/kvm" / event / file


def entries(text: str, keys: list[str]) -> Counter[tuple[int, ...]]:
    """What a histogram of the kernel's says."""
    found: Counter[tuple[int, ...]] = Counter()
    for entry in ENTRY.finditer(text):
        values = dict(FIELD.findall(entry["keys"]))
        found[tuple(int(values[key], 0) for key in keys)] += int(entry["count"])
    return found


def named(kind: str, address: int, ranges: Ranges) -> str:
    """The row for what is at ``address``."""
    for start, size, name in ranges:
        if start <= address < start + size:
            return f"{kind}: {name}"
    return f"{kind}: others"


def rows(found: Found) -> Counter[str]:
    """Exits by device and cause, then those of them that came to the VMM."""
    counts: Counter[str] = Counter()
    for (_, port), count in found["kvm_pio"].items():
        counts[named("port", port, PORTS)] += count
    for (kind, gpa), count in found["kvm_mmio"].items():
        # A read that the VMM answers is told twice: when it begins and when it is done.
        if kind != MMIO_READ_BEGINS:
            counts[named("MMIO", gpa, ADDRESSES)] += count
    mapped = sum(count for name, count in counts.items() if name.startswith("MMIO"))
    for (msr,), count in found["kvm_msr"].items():
        counts[named("MSR", msr & 0xFFFFFFFF, MSRS)] += count
    for (isa, reason), count in found["kvm_exit"].items():
        if reason in FAULTS[isa]:
            counts["page faults"] += count - (mapped if isa == SVM else 0)
        elif reason not in TOLD[isa]:
            counts[REASONS[isa].get(reason, "others")] += count
    counts["all"] = found["kvm_exit"].total()
    for (reason,), count in found["kvm_userspace_exit"].items():
        counts[f"to the VMM: {USER_EXITS.get(reason, 'others')}"] += count
    return counts


def count(
    vmm: str, path: str, kernel: str, initramfs: str, memory: str = MEMORY, what: str = "linux"
) -> None:
    """Boot Linux to user space and off; prints how often each row was."""
    with Tracing() as tracing:
        run(what, vmm, path, kernel, initramfs, memory)
    print(json.dumps(rows(tracing.found)))
