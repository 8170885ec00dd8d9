"""The fixed tables, and all of them laid out from the RSDP on.

Source: ACPI 6.5, 5.2 (RSDP, XSDT, FADT, MADT), PCI Firmware Specification 3.3, 4.1.2 (MCFG).
"""

from __future__ import annotations

import struct

from vmm import layout
from vmm.acpi.dsdt import dsdt_terms
from vmm.errors import HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmm.acpi.spec import AcpiSpec

OEM_ID = b"CLOUDH"
CREATOR_ID = b"RVAT"
# Stored as the four bytes 00 00 00 01.
CREATOR_REVISION = 0x01000000
HEADER = struct.Struct("<4sIBB6s8sI4sI")
FADT_SIZE = 276
# HW_REDUCED_ACPI, RESET_REG_SUP, TMR_VAL_EXT.
FADT_FLAGS = 1 << 20 | 1 << 10 | 1 << 8
# CMOS_RTC_NOT_PRESENT (5.2.9.3): the clock at 0x70 has no interrupt and no alarm, and without
# this flag Linux's driver asks for one and fails. Firmware reads the CMOS whatever this says.
BOOT_ARCH = 1 << 5
RESET_VALUE = 1
HYPERVISOR_VENDOR = b"CLOUDHYP"
SYSTEM_IO = 1
# Access size codes of a generic address (5.2.3.2): 1 byte, 3 dword.
ACCESS_BYTE = 1
ACCESS_DWORD = 3
X2APIC_ENTRY = 9
IOAPIC_ENTRY = 1
OVERRIDE_ENTRY = 2


def checksum(data: bytes | bytearray) -> int:
    """The byte that makes the sum of ``data`` and itself zero."""
    return -sum(data) & 0xFF


def table(signature: bytes, revision: int, oem_table_id: bytes, body: bytes) -> bytes:
    """A table with its 36-byte header."""
    head = HEADER.pack(
        signature, HEADER.size + len(body), revision, 0, OEM_ID, oem_table_id.ljust(8), 1,
        CREATOR_ID, CREATOR_REVISION,
    )  # fmt: skip
    data = bytearray(head + body)
    data[9] = checksum(data)
    return bytes(data)


def generic_address(port: int, bits: int, access: int) -> bytes:
    """A generic address structure for an I/O port."""
    return struct.pack("<BBBBQ", SYSTEM_IO, bits, 0, access, port)


def fadt(dsdt_gpa: int) -> bytes:
    """Fixed ACPI description table, hardware-reduced."""
    body = bytearray(FADT_SIZE - HEADER.size)

    def put(offset: int, data: bytes) -> None:
        body[offset - HEADER.size : offset - HEADER.size + len(data)] = data

    control = generic_address(layout.ACPI_PORT, 8, ACCESS_BYTE)
    put(109, struct.pack("<H", BOOT_ARCH))
    put(112, struct.pack("<I", FADT_FLAGS))
    put(116, control)
    put(128, bytes([RESET_VALUE]))
    put(131, b"\x03")
    put(140, struct.pack("<Q", dsdt_gpa))
    put(208, generic_address(layout.PM_TIMER_PORT, 32, ACCESS_DWORD))
    put(244, control)
    put(256, control)
    put(268, HYPERVISOR_VENDOR)
    return table(b"FACP", 6, b"CHFACP", bytes(body))


def madt(apic_ids: tuple[int, ...]) -> bytes:
    """Interrupt controllers: one local x2APIC for each CPU, one IOAPIC."""
    entries = [struct.pack("<II", layout.LAPIC_GPA, 0)]
    for index, apic_id in enumerate(apic_ids):
        # Enabled and online capable.
        entries.append(struct.pack("<BBHIII", X2APIC_ENTRY, 16, 0, apic_id, 3, index))
    entries.append(struct.pack("<BBBBII", IOAPIC_ENTRY, 12, 0, 0, layout.IOAPIC_GPA, 0))
    gsi = layout.COM1_GSI
    entries.append(struct.pack("<BBBBIH", OVERRIDE_ENTRY, 10, 0, gsi, gsi, 0))
    return table(b"APIC", 5, b"CHMADT", b"".join(entries))


def mcfg(ecam_gpa: int) -> bytes:
    """ECAM of segment 0, bus 0."""
    return table(b"MCFG", 1, b"CHMCFG", bytes(8) + struct.pack("<QHBBI", ecam_gpa, 0, 0, 0, 0))


def rsdp(xsdt_gpa: int) -> bytes:
    """The root pointer, revision 2, without an RSDT."""
    data = bytearray(struct.pack("<8sB6sBIIQB3x", b"RSD PTR ", 0, OEM_ID, 2, 0, 36, xsdt_gpa, 0))
    data[8] = checksum(data[:20])
    data[32] = checksum(data)
    return bytes(data)


RSDP_SIZE = 36
DSDT_GPA = layout.RSDP_GPA + RSDP_SIZE
# The same for every guest.
FADT = fadt(DSDT_GPA)
MCFG = mcfg(layout.ECAM_GPA)
# The latest, for a process that makes one guest like the other.
_latest: list[tuple[AcpiSpec, bytes]] = []


def build_acpi(spec: AcpiSpec) -> bytes:
    """All tables, contiguous, for RSDP_GPA: RSDP, DSDT, FACP, APIC, MCFG, XSDT. Any thread."""
    for known, tables in _latest:
        if known == spec:
            return tables
    tables = _build(spec)
    _latest[:] = [(spec, tables)]
    return tables


def _build(spec: AcpiSpec) -> bytes:
    gpa = DSDT_GPA
    dsdt = table(b"DSDT", 6, b"CHDSDT", dsdt_terms(spec))
    blob = dsdt
    listed = []
    for one in (FADT, madt(spec.apic_ids), MCFG):
        listed.append(gpa + len(blob))
        blob += one
    xsdt_gpa = gpa + len(blob)
    blob += table(b"XSDT", 1, b"CHXSDT", struct.pack(f"<{len(listed)}Q", *listed))
    end = gpa + len(blob)
    if end > layout.SMBIOS_GPA:
        raise HostError(
            f"the ACPI tables of {len(spec.apic_ids)} CPUs need "
            f"{end - layout.RSDP_GPA} bytes; {layout.SMBIOS_GPA - layout.RSDP_GPA} are there",
            "lower VLLMD_HYPERVISOR_CPU_COUNT",
        )
    return rsdp(xsdt_gpa) + blob
