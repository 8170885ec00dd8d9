"""Base address registers: sizing, moving, decoding.

Source: PCI Local Bus Specification 3.0, 6.2.5.1 and 6.2.5.2. A guest may size a register with
decoding on (rust-hypervisor-firmware does): the probe is remembered and never taken for a move.
"""

from __future__ import annotations

from devices.pci.config_space import COMMAND_IO, COMMAND_MEMORY

TYPE_64 = 0x4
PREFETCHABLE = 0x8
IO_SPACE = 0x1
ROM_ENABLE = 0x1
DWORD = 0xFFFFFFFF
# The expansion ROM's register counts as the ninth dword from the first BAR on.
ROM_INDEX = 8


class Bar:
    """One memory BAR of ``size`` bytes (a power of two) in register ``index`` (two if 64-bit).

    ``value`` is what the registers hold; ``mapped`` is where the range answers now, or None;
    ``refused`` is where it could not go, as last told. All change under the bus's lock (PciRoot);
    ``mapped`` may be read without it.
    """

    space = "memory"
    decode_bit = COMMAND_MEMORY
    # Bits of the lower register that are no address.
    low_mask = 0xF
    size_min = 16
    # Bits of the lower register that are no address and that a guest can change.
    writable_flags = 0

    def __init__(
        self, index: int, size: int, *, wide: bool = False, prefetchable: bool = False,
        name: str = "",
    ) -> None:  # fmt: skip
        if size & (size - 1) or size < self.size_min:
            raise ValueError(
                f"BAR {index} of {size} bytes: a power of two from {self.size_min} on is needed"
            )
        self.index = index
        self.size = size
        self.kind = "64-bit memory" if wide else "32-bit memory"
        self.wide = wide
        self.name = name
        self.flags = (TYPE_64 if wide else 0) | (PREFETCHABLE if prefetchable else 0)
        self.value = 0
        self.probing = [False, False]
        self.mapped: int | None = None
        self.refused: int | None = None

    def read(self, half: int) -> int:
        """The register's 32 bits: address and flags, or the size mask after a probe."""
        if self.probing[half]:
            mask = -self.size & ((1 << 64) - 1)
            return mask >> 32 & DWORD if half else mask & DWORD & ~self.low_mask | self.flags
        if half:
            return self.value >> 32
        return self.value & DWORD | self.flags

    def write(self, half: int, value: int) -> None:
        """A guest's write of one half; all ones is a size probe."""
        if (value | self.low_mask if not half else value) == DWORD:
            self.probing[half] = True
            return
        self.probing[half] = False
        if half:
            self.value = self.value & DWORD | value << 32
        else:
            self.value = self.value & ~DWORD | value & DWORD & ~self.low_mask
        self.value &= -self.size

    @property
    def settled(self) -> bool:
        """False in the middle of a size probe."""
        return not any(self.probing)

    def answers(self, command: int) -> bool:
        """Whether the range is decoded with this value of the command register."""
        return bool(command & self.decode_bit)


class IoBar(Bar):
    """A BAR in port space."""

    space = "ports"
    decode_bit = COMMAND_IO
    low_mask = 0x3
    size_min = 4

    def __init__(self, index: int, size: int) -> None:
        super().__init__(index, size)
        self.flags = IO_SPACE
        self.kind = "ports"


class RomBar(Bar):
    """The expansion ROM's register: decoded while memory is and its own lowest bit is set."""

    low_mask = 0x7FF
    size_min = 2048
    writable_flags = ROM_ENABLE

    def __init__(self, size: int) -> None:
        super().__init__(ROM_INDEX, size)
        self.kind = "expansion ROM"

    def write(self, half: int, value: int) -> None:
        """As the base; the enable bit is kept, the size probe leaves it off."""
        super().write(half, value)
        self.flags = value & ROM_ENABLE if self.settled else 0

    def answers(self, command: int) -> bool:
        """Memory decoding alone is not enough."""
        return super().answers(command) and bool(self.flags & ROM_ENABLE)
