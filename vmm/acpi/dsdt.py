"""The DSDT: PCI root, power button, GED, serial port, panic port, processors.

Source: ACPI 6.5, chapters 5 and 6; PCI Firmware Specification 3.3, 4.6 (_DSM of a root bridge).
No hotplug is offered, so nothing of it is described. What is the same for every guest is written
once, when this module is imported.
"""

from __future__ import annotations

import struct

from vmm import layout
from vmm.acpi import aml

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmm.acpi.spec import AcpiSpec

PCI_DSM_UUID = "e5c937d0-3553-4d7a-9117-ea4d19c3434d"
DSM_PRESERVE_BOOT_CONFIG = 5
# Functions 0 and 5 of the _DSM exist.
DSM_FUNCTIONS = bytes([1 << 0 | 1 << DSM_PRESERVE_BOOT_CONFIG])
STA_PRESENT = 0xF
GED_POWER_BUTTON = 8
GED_NEW_GENERATION = 16
NOTIFY_POWER_BUTTON = 0x80
NOTIFY_NEW_GENERATION = 0x80
SLEEP_TYPE_S5 = 5
PCI_CONFIG_PORTS = (0xCF8, 8)
IO_END = 0xFFFF
MADT_X2APIC = 9


def dsdt_terms(spec: AcpiSpec) -> bytes:
    """Everything inside the DSDT behind its header."""
    return b"".join(
        [
            aml.device("\\_SB.PC00", _PCI_IDS, _pci_windows(spec), _PCI_ROUTES),
            _FIXED_DEVICES,
            aml.device("\\_SB.GEC_", _EVENT_IDS, _event_register(spec), _EVENT_SCAN),
            _EVENT_DEVICE,
            _processors(spec),
        ]
    )


def _pci_ids() -> bytes:
    return b"".join(
        [
            aml.name("_HID", aml.eisa_id("PNP0A08")),
            aml.name("_CID", aml.eisa_id("PNP0A03")),
            aml.name("_SEG", aml.integer(0)),
            aml.name("_UID", aml.integer(0)),
            aml.name("_CCA", aml.integer(1)),
            aml.name("SUPP", aml.integer(0)),
            _pci_dsm(),
        ]
    )


def _pci_windows(spec: AcpiSpec) -> bytes:
    return aml.name(
        "_CRS", aml.resources(_LOW_WINDOWS, aml.qword_memory(*spec.mmio64), _PORT_WINDOWS)
    )


def _pci_routes() -> bytes:
    routes = [
        aml.package(
            aml.integer(slot << 16 | 0xFFFF),
            aml.integer(0),
            aml.integer(0),
            aml.integer(layout.PCI_INTX_GSI + slot % layout.PCI_INTX_COUNT),
        )
        for slot in range(layout.PCI_SLOTS)
    ]
    return aml.name("_PRT", aml.package(*routes))


def _pci_dsm() -> bytes:
    """_DSM: function 5 returns 0: keep the resource assignment made before boot."""
    return aml.method(
        "_DSM",
        4,
        True,
        aml.if_(
            aml.equal(aml.ARG0, aml.uuid(PCI_DSM_UUID)),
            aml.if_(aml.equal(aml.ARG2, aml.integer(0)), aml.return_(aml.buffer(DSM_FUNCTIONS))),
            aml.if_(
                aml.equal(aml.ARG2, aml.integer(DSM_PRESERVE_BOOT_CONFIG)),
                aml.return_(aml.integer(0)),
            ),
        ),
        aml.return_(aml.buffer(b"\0")),
    )


def _motherboard() -> bytes:
    """Reserves ECAM: Linux uses it only when some ACPI device claims it."""
    return aml.device(
        "\\_SB.MBRD",
        aml.name("_HID", aml.eisa_id("PNP0C02")),
        aml.name("_UID", aml.integer(0)),
        aml.name("_CRS", aml.resources(aml.memory32_fixed(layout.ECAM_GPA, layout.ECAM_BUS_SIZE))),
    )


def _serial() -> bytes:
    return aml.device(
        "\\_SB.COM1",
        aml.name("_HID", aml.eisa_id("PNP0501")),
        aml.name("_UID", aml.integer(0)),
        aml.name("_DDN", aml.string("COM1")),
        aml.name(
            "_CRS",
            aml.resources(aml.interrupt(layout.COM1_GSI), aml.io(layout.COM1_PORT, 8)),
        ),
    )


def _panic_port() -> bytes:
    """By this _HID Linux loads its pvpanic driver."""
    return aml.device(
        "\\_SB.PEVT",
        aml.name("_HID", aml.string("QEMU0001")),
        aml.name("_UID", aml.integer(0)),
        aml.name("_STA", aml.integer(STA_PRESENT)),
        aml.name("_CRS", aml.resources(aml.io(layout.PVPANIC_PORT, 1))),
    )


def _sleep() -> bytes:
    kind = aml.integer(SLEEP_TYPE_S5)
    return aml.name("\\_S5_", aml.package(kind, kind, aml.integer(0), aml.integer(0)))


def _power_button() -> bytes:
    return aml.device(
        "\\_SB.PWRB",
        aml.name("_HID", aml.eisa_id("PNP0C0C")),
        aml.name("_UID", aml.integer(0)),
    )


def _generation() -> bytes:
    """Where the generation id is. Source: Microsoft, "Virtual Machine Generation ID", 2012.

    Linux finds it by the _CID (drivers/virt/vmgenid.c), and reseeds when it is told.
    """
    low, high = layout.VMGENID_GPA & 0xFFFFFFFF, layout.VMGENID_GPA >> 32
    return aml.device(
        "\\_SB.VGEN",
        aml.name("_HID", aml.string("VMGC0001")),
        aml.name("_CID", aml.string("VM_Gen_Counter")),
        aml.name("_DDN", aml.string("VM_Gen_Counter")),
        aml.name("ADDR", aml.package(aml.integer(low), aml.integer(high))),
    )


def _event_register(spec: AcpiSpec) -> bytes:
    """The register of pending events."""
    return aml.operation_region("GDST", aml.SYSTEM_MEMORY, spec.ged_gpa, 1)


def _event_ids() -> bytes:
    hid = aml.name("_HID", aml.eisa_id("PNP0A06"))
    return hid + aml.name("_UID", aml.string("Generic Event Controller"))


def _event_scan() -> bytes:
    """What reads the register, and tells the devices whose events are pending."""
    scan = aml.method(
        "ESCN",
        0,
        True,
        aml.store(aml.name_string("GDAT"), aml.LOCAL0),
        aml.if_(
            aml.equal(
                aml.and_(aml.LOCAL0, aml.integer(GED_POWER_BUTTON)),
                aml.integer(GED_POWER_BUTTON),
            ),
            aml.notify("\\_SB.PWRB", NOTIFY_POWER_BUTTON),
        ),
        aml.if_(
            aml.equal(
                aml.and_(aml.LOCAL0, aml.integer(GED_NEW_GENERATION)),
                aml.integer(GED_NEW_GENERATION),
            ),
            aml.notify("\\_SB.VGEN", NOTIFY_NEW_GENERATION),
        ),
    )
    return aml.field("GDST", aml.BYTE_ACC, ("GDAT", 8)) + scan


def _event_device() -> bytes:
    """The GED, whose interrupt says that the register changed."""
    return aml.device(
        "\\_SB.GED_",
        aml.name("_HID", aml.string("ACPI0013")),
        aml.name("_UID", aml.integer(0)),
        aml.name("_CRS", aml.resources(aml.interrupt(layout.GED_GSI))),
        aml.method("_EVT", 1, True, aml.call("\\_SB.GEC_.ESCN")),
    )


def _processors(spec: AcpiSpec) -> bytes:
    devices = [_processor(index, apic_id) for index, apic_id in enumerate(spec.apic_ids)]
    return aml.device("\\_SB.CPUS", _PROCESSORS_IDS, *devices)


def _processor(index: int, apic_id: int) -> bytes:
    madt = struct.pack("<BBHIII", MADT_X2APIC, 16, 0, apic_id, 1, index)
    return aml.device(
        f"C{index:03X}",
        _PROCESSOR_ID,
        aml.name("_UID", aml.integer(index)),
        _PROCESSOR_PRESENT,
        aml.name("_MAT", aml.buffer(madt)),
    )


_PORT, _PORTS = PCI_CONFIG_PORTS
_LOW_WINDOWS = (
    aml.word_bus_number(0, 0)
    + aml.io(_PORT, _PORTS)
    + aml.qword_memory(layout.MMIO32_GPA, layout.MMIO32_SIZE)
)
_PORT_WINDOWS = aml.word_io(0, _PORT - 1) + aml.word_io(_PORT + _PORTS, IO_END)
_PCI_IDS = _pci_ids()
_PCI_ROUTES = _pci_routes()
_FIXED_DEVICES = b"".join(
    [_motherboard(), _serial(), _panic_port(), _sleep(), _power_button(), _generation()]
)
_EVENT_IDS = _event_ids()
_EVENT_SCAN = _event_scan()
_EVENT_DEVICE = _event_device()
_PROCESSORS_IDS = aml.name("_HID", aml.string("ACPI0010")) + aml.name(
    "_CID", aml.eisa_id("PNP0A05")
)
_PROCESSOR_ID = aml.name("_HID", aml.string("ACPI0007"))
_PROCESSOR_PRESENT = aml.name("_STA", aml.integer(STA_PRESENT))
