"""What the ACPI tables tell of the platform: the record that all of them are written from."""

from __future__ import annotations

from vmm import layout
from vmm.light.record import Record


class AcpiSpec(Record):
    """What the tables tell: addresses are (gpa, size) in bytes."""

    __slots__ = (
        "apic_ids", "ecam", "ged_gpa", "ged_gsi", "intx_count", "intx_gsi", "mmio32", "mmio64",
        "pvpanic_port", "serial", "serial_gsi", "serial_port", "slots",
        "vmgenid_gpa",
    )  # fmt: skip
    apic_ids: tuple[int, ...]
    mmio32: tuple[int, int]
    mmio64: tuple[int, int]
    ecam: tuple[int, int]
    pvpanic_port: int
    ged_gpa: int
    ged_gsi: int
    serial: bool
    serial_gsi: int
    serial_port: int
    slots: int
    intx_gsi: int
    intx_count: int
    vmgenid_gpa: int

    def __init__(
        self, apic_ids: list[int], mmio64: tuple[int, int], ged_gpa: int, serial: bool = True
    ) -> None:
        self._set(
            apic_ids=tuple(apic_ids),
            mmio32=(layout.MMIO32_GPA, layout.MMIO32_SIZE),
            mmio64=mmio64,
            ecam=(layout.ECAM_GPA, layout.ECAM_BUS_SIZE),
            ged_gpa=ged_gpa,
            ged_gsi=layout.GED_GSI,
            pvpanic_port=layout.PVPANIC_PORT,
            serial=serial,
            serial_gsi=layout.COM1_GSI,
            serial_port=layout.COM1_PORT,
            slots=layout.PCI_SLOTS,
            intx_gsi=layout.PCI_INTX_GSI,
            intx_count=layout.PCI_INTX_COUNT,
            vmgenid_gpa=layout.VMGENID_GPA,
        )
