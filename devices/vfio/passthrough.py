"""A host's PCI device as a function of the guest's bus.

Its memory is mapped into the guest, its interrupts go to the guest by eventfds: neither costs an
exit to us. Configuration space is the device's own, except for what must not reach it: BARs, MSI
and MSI-X, and capabilities that the guest could not use.
Source: PCI Local Bus Specification 3.0, 6; Documentation/driver-api/vfio.rst.
"""

from __future__ import annotations

import time

from devices.pci.config_space import (
    CAPABILITIES,
    COMMAND,
    FIRST_CAPABILITY,
    HEADER_TYPE,
    INTERRUPT_LINE,
    SIZE,
    STATUS,
    STATUS_CAPABILITIES,
    ConfigSpace,
)
from devices.pci.function import PciFunction, is_bar
from devices.vfio import gpudirect
from devices.vfio.host_signals import HostSignals
from devices.vfio.interrupts import Interrupts, Overlay
from devices.vfio.regions import DWORD, Region, find_bars, no_answer
from vmm._native.vfio import ioctls as vfio
from vmm._native.vfio.ioctls import VfioBar
from vmm.errors import HostError, StateError
from vmm.light.teardown import close_all
from vmm.log.hub import get_logger

TYPE_CHECKING = False
if TYPE_CHECKING:
    from devices.pci.bar import Bar
    from devices.vfio.peers import PeerToPeer
    from vmm._native.vfio.ioctls import VfioDevice
    from vmm.host.pci import HostDevice
    from vmm.irq import IrqRouter
    from vmm.vm import DeviceSlots

log = get_logger(__name__)

MULTIFUNCTION = 0x80
EXTENDED = 0x100
PCIE_ID = 0x10
# Extended capabilities that speak of more functions or other BARs than the guest has.
HIDDEN = {0x0E: "ARI", 0x10: "SR-IOV", 0x15: "Resizable BAR"}
CHAIN_MAX = 64


class PassthroughFunction(PciFunction):
    """One device. Built and closed on the control thread; accesses come from vCPU threads.

    The bus's lock (PciRoot) holds configuration space, BARs and regions; read() and write() come
    without it and belong to the lock of ``interrupts``. status() takes none.
    """

    asked_dwords = None

    def __init__(
        self,
        host: HostDevice,
        device: VfioDevice,
        irq: IrqRouter,
        intx_gsi: int,
        slots: DeviceSlots,
        peers: PeerToPeer,
        clique: int | None = None,
    ) -> None:
        started = time.monotonic()
        self.host = host
        self.bdf = bdf = host.bdf
        self.device = device
        self._slots = slots
        self._peers = peers
        flags, _, _ = device.get_info()
        if not flags & vfio.FLAG_PCI:
            raise HostError(f"{bdf} is no PCI device to VFIO", "bind it to vfio-pci")
        self.reset = self._reset(flags)
        self._base = device.get_region_info(vfio.CONFIG_REGION)[2]
        if self._get(0, 4) == DWORD:
            raise no_answer(bdf, "its configuration")
        config = ConfigSpace(0, 0, 0, 0, (0, 0))
        config.set(COMMAND, self._get(COMMAND, 2), 2)
        super().__init__(bdf, config)
        self.overlay = Overlay(SIZE)
        self.overlay.own(HEADER_TYPE, self._get(HEADER_TYPE, 1) & ~MULTIFUNCTION, 1)
        self.overlay.own(INTERRUPT_LINE, 0, 1)
        chain = self._capabilities()
        # The first of each kind counts.
        capabilities = {kind: offset for offset, kind in reversed(chain)}
        self.interrupts = Interrupts(
            bdf, device, irq, intx_gsi, self.overlay, capabilities, self._get
        )
        self.hidden = self._hide_extended() if PCIE_ID in capabilities else []
        self._regions: dict[int, Region] = {}
        self.clique = clique
        if clique is not None:
            self._tell_clique(clique, chain)
        for bar, region in find_bars(bdf, device, self.interrupts, self._get, self._put):
            self.add_bar(bar)
            self._regions[bar.index] = region
        self.signals = HostSignals(device)
        self.attach_ms = round((time.monotonic() - started) * 1000, 3)

    # --- what the device has ---

    def _get(self, offset: int, size: int) -> int:
        return self.device.read(self._base + offset, size)

    def _put(self, offset: int, value: int, size: int) -> None:
        self.device.write(self._base + offset, value, size)

    def _reset(self, flags: int) -> str:
        """The device starts as after power-on, where it can be reset at all."""
        if not flags & vfio.FLAG_RESET:
            return "not possible"
        try:
            self.device.reset()
        except OSError as error:
            log.warning(f"{self.bdf}: reset failed: {error}; it starts as its last user left it")
            return f"failed: {error}"
        return "done"

    def _capabilities(self) -> list[tuple[int, int]]:
        """(offset, id) of each capability in the chain (PCI 3.0, 6.7); one that loops is cut."""
        found: list[tuple[int, int]] = []
        if not self._get(STATUS, 2) & STATUS_CAPABILITIES:
            return found
        offset = self._get(CAPABILITIES, 1) & ~3
        for _ in range(CHAIN_MAX):
            if offset < FIRST_CAPABILITY:
                break
            found.append((offset, self._get(offset, 1)))
            offset = self._get(offset + 1, 1) & ~3
        return found

    def _tell_clique(self, clique: int, chain: list[tuple[int, int]]) -> None:
        """One more capability at the end of the chain, where this device has nothing."""
        start, end = gpudirect.OFFSET, gpudirect.OFFSET + gpudirect.SIZE
        taken = any(start <= offset < end for offset, _ in chain)
        if not chain or taken or any(self._get(offset, 4) for offset in range(start, end, 4)):
            log.warning(f"{self.bdf}: no room at {start:#x} to tell its GPUDirect clique")
            self.clique = None
            return
        for offset, value in zip((start, start + 4), gpudirect.capability(clique), strict=True):
            self.overlay.own(offset, value, 4)
        self.overlay.own(chain[-1][0] + 1, start, 1)

    def _hide_extended(self) -> list[str]:
        hidden = []
        offset = EXTENDED
        for _ in range(SIZE // 8):
            head = self._get(offset, 4)
            if head in (0, 0xFFFFFFFF):
                break
            if head & 0xFFFF in HIDDEN:
                hidden.append(HIDDEN[head & 0xFFFF])
                self.overlay.own(offset, 0, 2)  # the null capability; its successor stays
            offset = head >> 20 & ~3
            if offset < EXTENDED:
                break
        return hidden

    # --- configuration space ---

    def config_read(self, offset: int, size: int) -> int:
        """The device's own value, with our bytes laid over it."""
        if is_bar(offset):
            return super().config_read(offset, size)
        try:
            value = self._get(offset, size)
        except OSError:
            value = (1 << 8 * size) - 1  # what a device that is gone answers
        return self.overlay.read(offset, size, value)

    def config_write(self, offset: int, value: int, size: int) -> None:
        """Ours stay here; everything else goes to the device, for as long as it is there."""
        try:
            self._write_config(offset, value, size)
        except OSError as error:
            log.warning(f"{self.bdf}: {size} bytes at {offset:#x} of its configuration: {error}")

    def _write_config(self, offset: int, value: int, size: int) -> None:
        if is_bar(offset):
            super().config_write(offset, value, size)
        elif self.interrupts.covers(offset, size):
            self.interrupts.write(offset, value, size)
        elif offset == INTERRUPT_LINE and size == 1:
            self.overlay.own(INTERRUPT_LINE, value, 1)
        elif offset <= COMMAND < offset + size:
            self._write_command(offset, value, size)
        elif not self.overlay.touches(offset, size):
            self._put(offset, value, size)

    def _write_command(self, offset: int, value: int, size: int) -> None:
        """Memory of the device may be mapped only while the device decodes it."""
        command = value >> 8 * (COMMAND - offset) & ((1 << 8 * min(size, 2)) - 1)
        # What is switched on comes on before our mappings do, what is switched off stays till
        # they are gone.
        before = self.config.get(COMMAND, 2) & self.decode_bits
        self._put(offset, value | before << 8 * (COMMAND - offset), size)
        self.config.set(COMMAND, command, min(size, 2))
        self.update_bars()
        self._put(offset, value, size)

    def enable(self) -> None:
        """As the base; the device itself decodes its BARs then."""
        self._put(COMMAND, self._get(COMMAND, 2) | self.decode_bits, 2)
        super().enable()
        self.interrupts.enable_intx()

    # --- BARs ---

    def bar_target(self, bar: Bar) -> object:
        """What serves the parts of the BAR that are not mapped."""
        region = self._regions[bar.index]
        if region.target is None:
            table, end = self.interrupts.table_range(bar.index)
            region.target = VfioBar(self, self.device, region.offset, table, end)
        return region.target

    def bar_moved(self, bar: Bar, old: int | None, new: int | None) -> None:
        """The mapped parts follow."""
        self._regions[bar.index].place(new, self._slots, self._peers)

    def read(self, offset: int, size: int) -> int:
        """The MSI-X table in its BAR."""
        return self.interrupts.table_read(offset, size)

    def write(self, offset: int, value: int, size: int) -> None:
        """The MSI-X table in its BAR."""
        self.interrupts.table_write(offset, value, size)

    # --- life ---

    def quiesce(self) -> None:
        """StateError: a device of the host's goes on by itself, and nobody can read its state."""
        raise StateError(
            f"{self.name}: a device of the host's cannot be stopped, saved and put back",
            "take the snapshot of a guest without passed-through devices",
        )

    def state(self) -> dict[str, object]:
        """StateError, as quiesce()."""
        self.quiesce()
        return {}

    def set_state(self, state: object) -> None:
        """StateError, as quiesce()."""
        self.quiesce()

    def status(self) -> dict[str, object]:
        """Facts for `status`."""
        return {
            "name": f"vfio {self.bdf}",
            "slot": self.slot,
            "bdf": self.bdf,
            "group": self.host.group,
            "driver": self.host.driver,
            "backend": self._peers.backend,
            "reset": self.reset,
            "attach_ms": self.attach_ms,
            "interrupts": self.interrupts.status(),
            "hidden": self.hidden,
            "gpudirect_clique": self.clique,
            "p2p": self._peers.state([region.name for region in self._regions.values()]),
            "bars": [
                {
                    "index": bar.index,
                    "kind": bar.kind,
                    "size": bar.size,
                    "gpa": bar.mapped,
                    "mapped_bytes": self._regions[bar.index].mapped_bytes,
                    "trapped_accesses": getattr(self._regions[bar.index].target, "accesses", 0),
                }
                for bar in self.bars
            ],
        }

    def close(self) -> None:
        """Interrupts off, memory out of the guest, the device given back; idempotent."""
        close_all(
            [self.interrupts.close, self._close_regions, self.device.close, self.signals.close]
        )

    def _close_regions(self) -> None:
        for region in self._regions.values():
            region.close(self._slots, self._peers)
