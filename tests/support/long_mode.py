"""64-bit code in a tiny guest: page tables, and the registers that switch it on."""

from __future__ import annotations

import struct

import vmm

TABLES = 0x300000
STACK = 0x1F0000
# The first 2 MiB are there a second time.
ALIAS = 0x400000


def long_mode(guest: vmm.Guest) -> None:
    """64-bit code, the first 4 MiB mapped at their own place."""
    guest.memory.write(TABLES, struct.pack("<Q", TABLES + 0x1003))
    guest.memory.write(TABLES + 0x1000, struct.pack("<Q", TABLES + 0x2003))
    guest.memory.write(TABLES + 0x2000, struct.pack("<3Q", 0x83, 0x200083, 0x83))
    sregs = guest.cpus[0].sregs
    sregs.cr3, sregs.cr4, sregs.efer, sregs.cr0 = TABLES, 0x20, 0x500, 0x80000001
    sregs.cs = {**sregs.cs, "l": 1, "db": 0}
    guest.cpus[0].regs.rsp = STACK
