"""Where BARs lie when the guest starts: three windows, filled from their tops downwards.

Afterwards the guest moves them as it likes; the bridge knows the windows' bounds.
"""

from __future__ import annotations

from vmm import layout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from devices.pci.bar import Bar

# 64-bit BARs of virtio devices are placed at multiples of this, as on Cloud Hypervisor.
WIDE_BAR_ALIGNMENT = 8 * layout.MIB


class BarWindows:
    """The 32-bit, the 64-bit and the port window of one PCI bus; used while a machine is built.

    ``mmio64`` is (gpa, size) in bytes of the 64-bit window: it begins behind guest RAM.
    """

    def __init__(self, mmio64: tuple[int, int]) -> None:
        mmio32 = (layout.MMIO32_GPA, layout.MMIO32_SIZE)
        self.memory = [mmio32, mmio64]
        self.ports = (layout.PCI_IO_PORT, layout.PCI_IO_SIZE)
        self._window32 = layout.TopDownAllocator("32-bit window", *mmio32)
        self._window64 = layout.TopDownAllocator("64-bit window", *mmio64)
        self._ports = layout.TopDownAllocator("port window", *self.ports)

    def place_emulated(self, bar: Bar) -> None:
        """An address for a BAR of an emulated device."""
        alignment = max(bar.size, WIDE_BAR_ALIGNMENT) if bar.wide else bar.size
        bar.value = self._window(bar).allocate(bar.size, alignment)

    def place_passthrough(self, bars: Sequence[Bar], reachable: list[tuple[int, int]]) -> None:
        """Addresses for a device's BARs as a firmware would choose them, the largest first.

        Within ``reachable``, (first, last) of what the IOMMU can map, where that is possible:
        else other devices could not reach them. ValueError tells which BAR finds no place.
        """
        for bar in sorted(bars, key=lambda bar: -bar.size):
            ports = bar.space == "ports"
            alignment = bar.size if ports else max(bar.size, layout.PAGE_SIZE)
            try:
                bar.value = self._window(bar).allocate(
                    bar.size, alignment, [] if ports else reachable
                )
            except ValueError as error:
                raise ValueError(
                    f"no place for BAR {bar.index} of {bar.size:#x} bytes: {error}"
                ) from None

    def _window(self, bar: Bar) -> layout.TopDownAllocator:
        if bar.space == "ports":
            return self._ports
        return self._window64 if bar.wide else self._window32
