"""What the guest is told at its entry: PVH start info, or Linux's zero page for a bzImage.

Source: Xen's include/public/arch-x86/hvm/start_info.h; Documentation/arch/x86/zero-page.rst.
"""

from __future__ import annotations

import struct

from vmm.boot.bzimage import SETUP_HEADER_OFFSET
from vmm.layout import (
    CMDLINE_GPA,
    PVH_MEMMAP_GPA,
    PVH_MODULES_GPA,
    PVH_START_INFO_GPA,
    RSDP_GPA,
    ZERO_PAGE_GPA,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmm._native.memory.guestmem import GuestMemory

START_INFO_MAGIC = 0x336EC578
START_INFO_VERSION = 1
E820_RAM = 1
E820_RESERVED = 2
E820_MAX = 128
# Offsets in the zero page (struct boot_params).
ACPI_RSDP_ADDR = 0x070
E820_ENTRIES = 0x1E8
E820_TABLE = 0x2D0
TYPE_OF_LOADER = 0x210
RAMDISK_IMAGE = 0x218
RAMDISK_SIZE = 0x21C
CMD_LINE_PTR = 0x228
ZERO_PAGE_SIZE = 0x1000
LOADER_UNDEFINED = 0xFF

MemoryMap = list[tuple[int, int, bool]]


def write_pvh(memory: GuestMemory, memory_map: MemoryMap, initrd: tuple[int, int] | None) -> None:
    """Start info, module list and memory map for a PVH entry. ``initrd`` is (gpa, size)."""
    modules = PVH_MODULES_GPA if initrd else 0
    memory.write(
        PVH_START_INFO_GPA,
        struct.pack(
            "<IIIIQQQQII",
            START_INFO_MAGIC,
            START_INFO_VERSION,
            0,
            1 if initrd else 0,
            modules,
            CMDLINE_GPA,
            RSDP_GPA,
            PVH_MEMMAP_GPA,
            len(memory_map),
            0,
        ),
    )
    if initrd:
        memory.write(PVH_MODULES_GPA, struct.pack("<QQQQ", initrd[0], initrd[1], 0, 0))
    entries = [
        struct.pack("<QQII", gpa, size, E820_RAM if usable else E820_RESERVED, 0)
        for gpa, size, usable in memory_map
    ]
    memory.write(PVH_MEMMAP_GPA, b"".join(entries))


def write_zero_page(
    memory: GuestMemory,
    setup_header: bytes,
    memory_map: MemoryMap,
    initrd: tuple[int, int] | None,
) -> None:
    """Struct boot_params for the 32-bit entry of a bzImage."""
    page = bytearray(ZERO_PAGE_SIZE)
    page[SETUP_HEADER_OFFSET : SETUP_HEADER_OFFSET + len(setup_header)] = setup_header
    if not page[TYPE_OF_LOADER]:
        page[TYPE_OF_LOADER] = LOADER_UNDEFINED
    struct.pack_into("<Q", page, ACPI_RSDP_ADDR, RSDP_GPA)
    struct.pack_into("<I", page, CMD_LINE_PTR, CMDLINE_GPA)
    if initrd:
        struct.pack_into("<I", page, RAMDISK_IMAGE, initrd[0])
        struct.pack_into("<I", page, RAMDISK_SIZE, initrd[1])
    page[E820_ENTRIES] = len(memory_map)
    for index, (gpa, size, usable) in enumerate(memory_map[:E820_MAX]):
        kind = E820_RAM if usable else E820_RESERVED
        struct.pack_into("<QQI", page, E820_TABLE + 20 * index, gpa, size, kind)
    memory.write(ZERO_PAGE_GPA, page)
