"""Code of a guest's in which an instruction that is left out is noticed."""

from __future__ import annotations

import vmm
from tests.support.two_vcpus import AP_CODE

WORK = AP_CODE + 0x100
# mov bl, 0; inc bl; cmp bl, 1; je back; and else jmp here
CHECKED = bytes.fromhex("b300 fec3 80fb01 74f7 ebfe")
CHECKED_STARTS = {0, 2, 4, 7}


def assert_sound(guest: vmm.Guest) -> None:
    """All vCPUs are at instructions of it, and it is what it was."""
    assert {cpu.address - WORK for cpu in guest.cpus} <= CHECKED_STARTS
    assert guest.memory.read(WORK, len(CHECKED)) == CHECKED
