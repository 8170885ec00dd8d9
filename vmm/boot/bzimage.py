"""Linux bzImage, started at its 32-bit entry.

Source: Documentation/arch/x86/boot.rst (the setup header and the 32-bit boot protocol).
"""

from __future__ import annotations

import struct

from vmm.boot.image import BZIMAGE, CMDLINE_USUAL, LoadPlan, Segment, kernel_error
from vmm.layout import HIGH_RAM_GPA

SETUP_HEADER_OFFSET = 0x1F1
MAGIC_OFFSET = 0x202
MAGIC = b"HdrS"
SECTOR = 512
# Where a field lies in the file (and, by design, in the zero page).
JUMP_LENGTH = 0x201
VERSION = 0x206
LOADFLAGS = 0x211
CODE32_START = 0x214
INITRD_ADDR_MAX = 0x22C
XLOADFLAGS = 0x236
CMDLINE_SIZE = 0x238
PREF_ADDRESS = 0x258
INIT_SIZE = 0x260
LOADED_HIGH = 1
XLF_CAN_BE_LOADED_ABOVE_4G = 2
HEADER_END_MAX = 0x2C0
VERSION_CMDLINE_SIZE = 0x206
VERSION_INIT_SIZE = 0x20A
# What kernels take that are too old to say it.
CMDLINE_OLD = 255


def is_bzimage(head: bytes) -> bool:
    """True when the first bytes of a file carry Linux's setup header."""
    return head[MAGIC_OFFSET : MAGIC_OFFSET + 4] == MAGIC


def plan_bzimage(head: bytes, file_size: int, path: str) -> LoadPlan:
    """The load plan from the first 1 KiB of the file; GuestError when it cannot be booted."""
    if len(head) < HEADER_END_MAX:
        raise kernel_error(path, f"a bzImage cut short at byte {len(head)}", "copy it again")
    version = struct.unpack_from("<H", head, VERSION)[0]
    code32_start = struct.unpack_from("<I", head, CODE32_START)[0]
    if not head[LOADFLAGS] & LOADED_HIGH or code32_start < HIGH_RAM_GPA:
        raise kernel_error(
            path,
            f"a zImage (loaded low, protocol {version >> 8}.{version & 0xFF}), which needs a BIOS",
            "use a bzImage",
        )
    setup_bytes = ((head[SETUP_HEADER_OFFSET] or 4) + 1) * SECTOR
    body = file_size - setup_bytes
    if body <= 0:
        raise kernel_error(
            path, f"a bzImage of {file_size} bytes without a kernel", "copy it again"
        )
    header_end = min(MAGIC_OFFSET + head[JUMP_LENGTH], HEADER_END_MAX)
    header = head[SETUP_HEADER_OFFSET:header_end]
    segment = Segment(setup_bytes, body, code32_start, max(body, _init_size(header, version)))
    return LoadPlan(BZIMAGE, code32_start, (segment,), header)


def field(header: bytes, fmt: str, offset: int) -> int:
    """A field of the setup header by its file offset; 0 where the header is too old for it."""
    start = offset - SETUP_HEADER_OFFSET
    if start + struct.calcsize(fmt) > len(header):
        return 0
    return int(struct.unpack_from(fmt, header, start)[0])


def _init_size(header: bytes, version: int) -> int:
    """RAM the kernel needs from its load address on before it knows of any memory map.

    A relocatable kernel decompresses itself at its preferred address or higher.
    """
    if version < VERSION_INIT_SIZE:
        return 0
    preferred = field(header, "<Q", PREF_ADDRESS)
    start = field(header, "<I", CODE32_START)
    return max(0, preferred - start) + field(header, "<I", INIT_SIZE)


def initrd_limit(plan: LoadPlan) -> int:
    """First gpa that an initramfs of this kernel must not reach (below 4 GiB)."""
    limit = field(plan.setup_header, "<I", INITRD_ADDR_MAX)
    if field(plan.setup_header, "<H", XLOADFLAGS) & XLF_CAN_BE_LOADED_ABOVE_4G or not limit:
        return 1 << 32
    return limit + 1


def cmdline_limit(plan: LoadPlan) -> int:
    """The most characters of command line, without the NUL, that this kernel takes.

    A longer one is cut by some kernels and stops others before their first word.
    """
    if plan.kind != BZIMAGE:
        return CMDLINE_USUAL
    if field(plan.setup_header, "<H", VERSION) < VERSION_CMDLINE_SIZE:
        return CMDLINE_OLD
    return field(plan.setup_header, "<I", CMDLINE_SIZE) or CMDLINE_OLD
