"""ELF kernels with a Multiboot header, as test kernels and teaching systems have it.

Source: the Multiboot Specification 0.6.96, 3.1 (header), 3.2 (state), 3.3 (information). Segments
are loaded by the ELF's program headers, also where the header's address fields are valid, as QEMU
does it.
"""

from __future__ import annotations

import struct

from vmm.boot.image import kernel_error
from vmm.layout import (
    CMDLINE_GPA,
    HIGH_RAM_GPA,
    LOW_RAM_END,
    MULTIBOOT_INFO_GPA,
    MULTIBOOT_MEMMAP_GPA,
    MULTIBOOT_MODULES_GPA,
    MULTIBOOT_NAME_GPA,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmm._native.memory.guestmem import GuestMemory
    from vmm.boot.params import MemoryMap

HEADER_MAGIC = 0x1BADB002
# The header lies wholly in the first 8 KiB, at a multiple of 4.
SEARCHED = 8192
HEADER = struct.Struct("<III")
# What a header may require of us: modules at pages, the memory's size. A video mode we have not.
PAGE_ALIGN, MEMORY_INFO, VIDEO_MODE = 1 << 0, 1 << 1, 1 << 2
REQUIREMENTS = 0xFFFF
HAS_MEMORY, HAS_CMDLINE, HAS_MODULES, HAS_MEMMAP, HAS_NAME = 1 << 0, 1 << 2, 1 << 3, 1 << 6, 1 << 9
INFO = struct.Struct("<7I16s7I")
MEMMAP = struct.Struct("<IQQI")
USABLE, RESERVED = 1, 2
KIB = 1024
NAME = b"vllmd-hypervisor\0"


def has_header(head: bytes, path: str) -> bool:
    """Whether the first 8 KiB of a file have a Multiboot header; GuestError for one that asks for
    what is not here.
    """
    place = head.find(HEADER_MAGIC.to_bytes(4, "little"), 0, SEARCHED)
    while 0 <= place <= min(len(head), SEARCHED) - HEADER.size:
        magic, flags, checksum = HEADER.unpack_from(head, place)
        if place % 4 == 0 and (magic + flags + checksum) & 0xFFFFFFFF == 0:
            _check(flags, path)
            return True
        place = head.find(HEADER_MAGIC.to_bytes(4, "little"), place + 1, SEARCHED)
    return False


def _check(flags: int, path: str) -> None:
    if flags & VIDEO_MODE:
        raise kernel_error(
            path, "its Multiboot header requires a video mode, which a guest here has not",
            "build it for a text console (bit 2 of the header's flags clear)",
        )  # fmt: skip
    unknown = flags & REQUIREMENTS & ~(PAGE_ALIGN | MEMORY_INFO)
    if unknown:
        raise kernel_error(
            path, f"its Multiboot header requires {unknown:#x}, which no Multiboot 1 loader knows",
            "build it with the flags 0 to 3",
        )  # fmt: skip


def write_multiboot(
    memory: GuestMemory, memory_map: MemoryMap, initrd: tuple[int, int] | None
) -> None:
    """The information structure and what it points to. ``initrd`` is (gpa, size), one module."""
    flags = HAS_MEMORY | HAS_CMDLINE | HAS_MEMMAP | HAS_NAME
    entries = b"".join(
        [
            MEMMAP.pack(MEMMAP.size - 4, gpa, size, USABLE if usable else RESERVED)
            for gpa, size, usable in memory_map
        ]
    )
    upper = [size for gpa, size, usable in memory_map if usable and gpa == HIGH_RAM_GPA]
    modules = 0
    if initrd:
        flags |= HAS_MODULES
        modules = MULTIBOOT_MODULES_GPA
        # The module's own command line is the kernel's: there is no other.
        memory.write(modules, struct.pack("<IIII", initrd[0], sum(initrd), CMDLINE_GPA, 0))
    memory.write(MULTIBOOT_MEMMAP_GPA, entries)
    memory.write(MULTIBOOT_NAME_GPA, NAME)
    memory.write(
        MULTIBOOT_INFO_GPA,
        INFO.pack(
            flags, LOW_RAM_END // KIB, sum(upper) // KIB, 0, CMDLINE_GPA, 1 if initrd else 0,
            modules, b"", len(entries), MULTIBOOT_MEMMAP_GPA, 0, 0, 0, MULTIBOOT_NAME_GPA, 0,
        ),
    )  # fmt: skip
