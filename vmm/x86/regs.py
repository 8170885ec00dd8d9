"""Registers, GDT and IDT at the entries: PVH, Multiboot, and Linux's 32-bit boot protocol.

Source: Xen docs/misc/pvh.pandoc (32-bit protected mode, flat segments, paging off, EBX = start
info); Documentation/arch/x86/boot.rst, 32-bit boot protocol (ESI = zero page); the Multiboot
Specification 0.6.96, 3.2 (EAX = magic, EBX = information).
"""

from __future__ import annotations

import struct

from vmm.layout import (
    BOOT_GDT_GPA,
    BOOT_IDT_GPA,
    BOOT_STACK_GPA,
    MULTIBOOT_INFO_GPA,
    PVH_START_INFO_GPA,
    ZERO_PAGE_GPA,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Null, flat 32-bit code, flat data, 32-bit TSS.
GDT = (0, 0x00CF9B000000FFFF, 0x00CF93000000FFFF, 0x00008B0000000067)
CODE_SELECTOR = 0x08
DATA_SELECTOR = 0x10
TSS_SELECTOR = 0x18
CODE_TYPE = 0xB
DATA_TYPE = 0x3
BUSY_TSS_TYPE = 0xB
TSS_LIMIT = 0x67
FLAT_LIMIT = 0xFFFFFFFF
CR0_PE = 1
RFLAGS_RESERVED = 2
FCW_DEFAULT = 0x37F
MXCSR_DEFAULT = 0x1F80
IDT_SIZE = 8
MULTIBOOT_MAGIC = 0x2BADB002


def gdt_bytes() -> bytes:
    """The boot GDT, for BOOT_GDT_GPA."""
    return struct.pack("<4Q", *GDT)


def idt_bytes() -> bytes:
    """The boot IDT, for BOOT_IDT_GPA: one empty gate."""
    return bytes(IDT_SIZE)


def _segment(selector: int, kind: int, limit: int, flat: bool) -> dict[str, int]:
    return {
        "base": 0, "limit": limit, "selector": selector, "type": kind, "present": 1, "dpl": 0,
        "db": 1 if flat else 0, "s": 1 if flat else 0, "l": 0, "g": 1 if flat else 0, "avl": 0,
    }  # fmt: skip


def boot_sregs() -> dict[str, Any]:
    """Flat 32-bit protected mode with paging off; the same for all entries."""
    data = _segment(DATA_SELECTOR, DATA_TYPE, FLAT_LIMIT, flat=True)
    return {
        "cs": _segment(CODE_SELECTOR, CODE_TYPE, FLAT_LIMIT, flat=True),
        "ds": data, "es": data, "fs": data, "gs": data, "ss": data,
        "tr": _segment(TSS_SELECTOR, BUSY_TSS_TYPE, TSS_LIMIT, flat=False),
        "gdt": (BOOT_GDT_GPA, 8 * len(GDT) - 1),
        "idt": (BOOT_IDT_GPA, IDT_SIZE - 1),
        "cr0": CR0_PE, "cr3": 0, "cr4": 0,
    }  # fmt: skip


def pvh_regs(entry: int) -> dict[str, int]:
    """General registers at a PVH entry."""
    return {"rip": entry, "rbx": PVH_START_INFO_GPA, "rflags": RFLAGS_RESERVED}


def multiboot_regs(entry: int) -> dict[str, int]:
    """General registers at a Multiboot entry; the stack is the kernel's own affair."""
    return {
        "rip": entry, "rax": MULTIBOOT_MAGIC, "rbx": MULTIBOOT_INFO_GPA, "rflags": RFLAGS_RESERVED,
    }  # fmt: skip


def bzimage_regs(entry: int) -> dict[str, int]:
    """General registers at the 32-bit entry of a bzImage."""
    return {
        "rip": entry, "rsi": ZERO_PAGE_GPA, "rsp": BOOT_STACK_GPA, "rflags": RFLAGS_RESERVED,
    }  # fmt: skip
