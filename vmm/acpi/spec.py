"""What the ACPI tables tell that differs from guest to guest; all else is vmm/layout.py's."""

from __future__ import annotations

from vmm.light.record import Record


class AcpiSpec(Record):
    """The CPUs, the window for 64-bit BARs as (gpa, size) in bytes, and the GED's register."""

    __slots__ = ("apic_ids", "ged_gpa", "mmio64")
    apic_ids: tuple[int, ...]
    mmio64: tuple[int, int]
    ged_gpa: int

    def __init__(self, apic_ids: list[int], mmio64: tuple[int, int], ged_gpa: int) -> None:
        self._set(apic_ids=tuple(apic_ids), mmio64=mmio64, ged_gpa=ged_gpa)
