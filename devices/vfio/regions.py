"""What is behind a device's BARs: memory mapped into the guest, the rest trapped.

Source: <linux/vfio.h> (VFIO_DEVICE_GET_REGION_INFO, sparse mmap, MSI-X mappable).
"""

from __future__ import annotations

from devices.pci.bar import Bar, IoBar, RomBar
from devices.pci.config_space import BAR0, BAR_COUNT
from vmm._native.vfio import ioctls as vfio
from vmm.errors import HostError
from vmm.log.hub import get_logger

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from devices.vfio.interrupts import Interrupts
    from devices.vfio.peers import PeerToPeer
    from vmm._native.vfio.ioctls import DeviceMapping, VfioBar, VfioDevice
    from vmm.vm import DeviceSlots

log = get_logger(__name__)

PAGE = 4096
DWORD = 0xFFFFFFFF
IO_SPACE = 1
MEMORY_TYPE = 6
MEMORY_64 = 4
PREFETCHABLE = 8


class Region:
    """One BAR's memory: where it is in the device's file, and what of it is mapped.

    The bus's lock (PciRoot) holds it while the guest runs.
    """

    def __init__(self, name: str, offset: int, mappings: list[tuple[int, DeviceMapping]]) -> None:
        self.name = name
        self.offset = offset
        self.mappings = mappings
        self.target: VfioBar | None = None
        self._slots: list[int] = []
        self._shared: list[tuple[int, int]] = []

    @property
    def mapped_bytes(self) -> int:
        """How much of the BAR the guest reaches without an exit."""
        return sum([mapping.size for _, mapping in self.mappings])

    def place(self, gpa: int | None, slots: DeviceSlots, peers: PeerToPeer) -> None:
        """Show the mapped parts at ``gpa``, or nowhere; what fails there is trapped instead."""
        self.withdraw(slots, peers)
        if gpa is None:
            return
        for offset, mapping in self.mappings:
            try:
                self._slots.append(slots.map(gpa + offset, mapping.size, mapping.address))
            except OSError as error:
                log.warning(
                    f"{self.name} at {gpa + offset:#x}: {error}; each access to it is an exit"
                )
                continue
            if peers.share(self.name, gpa + offset, mapping.size, mapping.address):
                self._shared.append((gpa + offset, mapping.size))

    def withdraw(self, slots: DeviceSlots, peers: PeerToPeer) -> None:
        """Out of the other devices' reach, then out of the guest's."""
        # One by one: what the kernel refuses to take away is still there, and tried again.
        while self._shared:
            peers.withdraw(*self._shared[-1])
            self._shared.pop()
        while self._slots:
            slots.unmap(self._slots[-1])
            self._slots.pop()

    def close(self, slots: DeviceSlots, peers: PeerToPeer) -> None:
        """Unmap everything; idempotent."""
        self.withdraw(slots, peers)
        for _, mapping in self.mappings:
            mapping.close()
        self.mappings = []


def no_answer(name: str, what: str) -> HostError:
    """The error for a device that fell off the bus: ``what`` of it reads as all ones."""
    return HostError(
        f"{name} does not answer: {what} reads as all ones",
        "see the kernel's log; power the host off and on if a reset does not bring it back",
    )


def find_bars(
    name: str,
    device: VfioDevice,
    interrupts: Interrupts,
    get: Callable[[int, int], int],
    put: Callable[[int, int, int], None],
) -> list[tuple[Bar, Region]]:
    """The BARs of a device, sized as a firmware would, with what is behind them."""
    found: list[tuple[Bar, Region]] = []
    index = 0
    while index < BAR_COUNT:
        register = BAR0 + 4 * index
        old = get(register, 4)
        put(register, DWORD, 4)
        mask = get(register, 4)
        put(register, old, 4)
        wide = not mask & IO_SPACE and mask & MEMORY_TYPE == MEMORY_64
        flags, size, offset, areas, mappable = device.get_region_info(index)
        # A device that fell off the bus: every BAR has some bits that are 0.
        if size and mask == DWORD:
            raise no_answer(name, f"BAR {index}")
        bar_name = f"{name}: BAR {index}"
        if size & (size - 1):
            raise HostError(
                f"{bar_name} has {size} bytes, which is no power of two: a guest cannot place it",
                "pass another device through; this one's driver on the host tells what cannot be",
            )
        if not mask or not size:
            pass
        elif mask & IO_SPACE:
            if size >= IoBar.size_min:
                found.append((IoBar(index, size), Region(bar_name, offset, [])))
        elif size >= Bar.size_min:
            bar = Bar(index, size, wide=wide, prefetchable=bool(mask & PREFETCHABLE))
            wanted = (areas or [(0, size)]) if flags & vfio.REGION_MMAP else []
            if index == interrupts.table_bar and not (mappable or areas):
                wanted = []
            mappings = _map(bar_name, device, offset, _parts(interrupts, index, wanted))
            found.append((bar, Region(bar_name, offset, mappings)))
        index += 2 if wide else 1
    flags, size, offset, _, _ = device.get_region_info(vfio.ROM_REGION)
    if size >= RomBar.size_min and not size & (size - 1):
        found.append((RomBar(size), Region(f"{name}: expansion ROM", offset, [])))
    return found


def _parts(
    interrupts: Interrupts, index: int, areas: list[tuple[int, int]]
) -> list[tuple[int, int]]:
    """Whole pages [start, end) of the areas, without those of the MSI-X table."""
    parts = []
    for offset, size in areas:
        for start, end in interrupts.around_table(index, offset, offset + size):
            start, end = -(-start // PAGE) * PAGE, end // PAGE * PAGE
            if end > start:
                parts.append((start, end))
    return parts


def _map(
    name: str, device: VfioDevice, file_offset: int, parts: list[tuple[int, int]]
) -> list[tuple[int, DeviceMapping]]:
    """Map them; what cannot be mapped is trapped instead."""
    mappings = []
    for start, end in parts:
        try:
            mapping = device.map(file_offset + start, end - start)
        except OSError as error:
            log.warning(
                f"{name} [{start:#x}, {end:#x}) cannot be mapped: {error}; each access to it "
                "is an exit"
            )
            continue
        mappings.append((start, mapping))
    return mappings
