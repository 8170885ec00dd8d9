"""Base address registers: sizing, moving, decoding.

Source: PCI Local Bus Specification 3.0, 6.2.5.1. A guest may size a register with decoding on
(rust-hypervisor-firmware does): the probe is remembered and never taken for a move.
"""

from __future__ import annotations

MEMORY_FLAGS = 0xF
TYPE_64 = 0x4
PREFETCHABLE = 0x8
DWORD = 0xFFFFFFFF


class Bar:
    """One memory BAR of ``size`` bytes (a power of two) in register ``index`` (two if 64-bit).

    ``value`` is what the registers hold; ``mapped`` is where the range answers now, or None.
    """

    def __init__(
        self, index: int, size: int, *, wide: bool, prefetchable: bool = False, name: str = ""
    ) -> None:
        if size & (size - 1) or size < 16:
            raise ValueError(f"BAR {index} of {size} bytes: a power of two from 16 on is needed")
        self.index = index
        self.size = size
        self.wide = wide
        self.name = name
        self.flags = (TYPE_64 if wide else 0) | (PREFETCHABLE if prefetchable else 0)
        self.value = 0
        self.probing = [False, False]
        self.mapped: int | None = None

    def read(self, half: int) -> int:
        """The register's 32 bits: address and flags, or the size mask after a probe."""
        if self.probing[half]:
            mask = -self.size & ((1 << 64) - 1)
            return mask >> 32 & DWORD if half else mask & DWORD & ~MEMORY_FLAGS | self.flags
        if half:
            return self.value >> 32
        return self.value & DWORD | self.flags

    def write(self, half: int, value: int) -> None:
        """A guest's write of one half; all ones is a size probe."""
        if (value | MEMORY_FLAGS if not half else value) == DWORD:
            self.probing[half] = True
            return
        self.probing[half] = False
        if half:
            self.value = self.value & DWORD | value << 32
        else:
            self.value = self.value & ~DWORD | value & DWORD & ~MEMORY_FLAGS
        self.value &= -self.size

    @property
    def settled(self) -> bool:
        """False in the middle of a size probe."""
        return not any(self.probing)
