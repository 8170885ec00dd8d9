"""Local APIC at boot: LINT0 takes the 8259's interrupts, LINT1 is the NMI.

Source: Intel SDM volume 3, 11.5.1 (local vector table).
"""

from __future__ import annotations

LVT_LINT0 = 0x350
LVT_LINT1 = 0x360
DELIVERY_MODE_MASK = 0x700
DELIVERY_EXTINT = 0x700
DELIVERY_NMI = 0x400


def set_lint(page: bytearray) -> None:
    """Set both local interrupt pins in a LAPIC register page, in place."""
    for offset, mode in ((LVT_LINT0, DELIVERY_EXTINT), (LVT_LINT1, DELIVERY_NMI)):
        value = int.from_bytes(page[offset : offset + 4], "little")
        value = value & ~DELIVERY_MODE_MASK | mode
        page[offset : offset + 4] = value.to_bytes(4, "little")
