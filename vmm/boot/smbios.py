"""SMBIOS 3.2: what the machine calls itself.

Source: DMTF DSP0134 3.2, 5.2.2 (64-bit entry point), 7.1, 7.2, 7.12, 7.45.
"""

from __future__ import annotations

import struct

from vmm.layout import SMBIOS_GPA

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

ENTRY_SIZE = 24
VENDOR = "cloud-hypervisor"
MANUFACTURER = "Cloud Hypervisor"
PRODUCT = "cloud-hypervisor"
CHARACTERISTICS_PCI = 1 << 7
CHARACTERISTICS_EXT2_VIRTUAL_MACHINE = 1 << 4
WAKE_UP_UNKNOWN = 2
BIOS_HANDLE = 0
SYSTEM_HANDLE = 1
END_HANDLE = 2
OEM_HANDLE = 3
# One byte counts them.
OEM_STRINGS_MAX = 255


def structure(kind: int, handle: int, body: bytes, *strings: str) -> bytes:
    """One structure: header, formatted area, strings, and the double NUL that ends it."""
    text = b"".join([s.encode("ascii") + b"\0" for s in strings]) or b"\0"
    return struct.pack("<BBH", kind, 4 + len(body), handle) + body + text + b"\0"


def bios_information() -> bytes:
    """Type 0."""
    body = struct.pack(
        "<BBHBBQBBBBBB",
        1, 2, 0, 0, 0, CHARACTERISTICS_PCI, 0, CHARACTERISTICS_EXT2_VIRTUAL_MACHINE, 0, 0, 0, 0,
    )  # fmt: skip
    return structure(0, BIOS_HANDLE, body, VENDOR, "0")


def system_information(uuid: bytes) -> bytes:
    """Type 1, with a UUID of 16 bytes (zero: not set)."""
    body = struct.pack("<BBBB16sBBB", 1, 2, 0, 0, uuid, WAKE_UP_UNKNOWN, 0, 0)
    return structure(1, SYSTEM_HANDLE, body, MANUFACTURER, PRODUCT)


def oem_strings(strings: Sequence[str]) -> bytes:
    """Structures of type 11, as many as these strings need."""
    found = b""
    for first in range(0, len(strings), OEM_STRINGS_MAX):
        some = strings[first : first + OEM_STRINGS_MAX]
        handle = OEM_HANDLE + first // OEM_STRINGS_MAX
        found += structure(11, handle, bytes([len(some)]), *some)
    return found


def build_smbios(uuid: bytes = bytes(16), strings: Sequence[str] = ()) -> bytes:
    """Entry point and structures, for SMBIOS_GPA. ``strings``: whoever makes the guest has them."""
    body = bios_information() + system_information(uuid) + oem_strings(strings)
    body += structure(127, END_HANDLE, b"")
    entry = bytearray(
        struct.pack(
            "<5sBBBBBBBIQ",
            b"_SM3_", 0, ENTRY_SIZE, 3, 2, 0, 1, 0, len(body), SMBIOS_GPA + ENTRY_SIZE,
        )
    )  # fmt: skip
    entry[5] = -sum(entry) & 0xFF
    return bytes(entry) + body
