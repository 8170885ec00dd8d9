"""Interrupts of a passed-through device: INTx, MSI and MSI-X, each from VFIO's eventfd to KVM's.

The guest's view of the MSI and MSI-X capabilities is kept here; the device's own is VFIO's.
Source: PCI Local Bus Specification 3.0, 6.8; <linux/vfio.h> (VFIO_DEVICE_SET_IRQS).
"""

from __future__ import annotations

import errno
from _thread import allocate_lock

from devices.pci.msix import CAPABILITY_ID as MSIX_ID
from devices.pci.msix import CONTROL, CONTROL_ENABLE, CONTROL_MASK_ALL, ENTRY_SIZE, Msix
from vmm._native.vfio import ioctls as vfio
from vmm.irq import unmask_all
from vmm.log.hub import get_logger

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm._native.vfio.ioctls import VfioDevice
    from vmm.irq import IrqRouter, LevelLine, MsiVector

log = get_logger(__name__)

PAGE = 4096
MSI_ID = 0x05
MSI_ENABLE = 1
MSI_COUNT_SHIFT = 4
MSI_COUNT_MASK = 7 << MSI_COUNT_SHIFT
MSI_64 = 1 << 7
MSI_MASKING = 1 << 8
TABLE = 4
BIR = 7
VFIO_INDEX = {"intx": vfio.INTX, "msi": vfio.MSI, "msix": vfio.MSIX}


class Overlay:
    """Bytes of configuration space that are ours, laid over the device's.

    The bus's lock (PciRoot) holds them.
    """

    def __init__(self, size: int) -> None:
        self._data = bytearray(size)
        self._own = bytearray(size)

    def own(self, offset: int, value: int, size: int) -> None:
        """From now on these bytes read as ``value``."""
        self._data[offset : offset + size] = value.to_bytes(size, "little")
        self._own[offset : offset + size] = b"\xff" * size

    def get(self, offset: int, size: int) -> int:
        """Our bytes alone."""
        return int.from_bytes(self._data[offset : offset + size], "little")

    def touches(self, offset: int, size: int) -> bool:
        """Whether any of these bytes is ours."""
        return any(self._own[offset : offset + size])

    def read(self, offset: int, size: int, below: int) -> int:
        """``below`` with our bytes in place of the device's."""
        mask = int.from_bytes(self._own[offset : offset + size], "little")
        return below & ~mask | self.get(offset, size) & mask


class Interrupts:
    """All interrupts of one device; one kind is on at a time, as VFIO has it.

    ``_lock`` holds the table, our bytes of the two capabilities and which kind is on. It is taken
    under the bus's lock (PciRoot) for configuration space, and alone for the table; the router's
    comes under it. The control thread switches them on before the guest runs, off after it, and
    calls status() without a lock.
    """

    def __init__(
        self,
        name: str,
        device: VfioDevice,
        irq: IrqRouter,
        intx_gsi: int,
        overlay: Overlay,
        capabilities: dict[int, int],
        get: Callable[[int, int], int],
    ) -> None:
        self._name = name
        self._device = device
        self._overlay = overlay
        self._irq = irq
        self._intx_gsi = intx_gsi
        self._line: LevelLine | None = None
        self._has_intx = device.get_irq_count(vfio.INTX) > 0
        self._msi = capabilities.get(MSI_ID, 0) if device.get_irq_count(vfio.MSI) else 0
        count = device.get_irq_count(vfio.MSIX)
        self._msix_offset = capabilities.get(MSIX_ID, 0) if count > 0 else 0
        self.kind = "none"
        # How many messages the host gives for the kind that is on.
        self._connected = 0
        self._lock = allocate_lock()
        self._used: list[str] = []
        self._msi_size = 0
        if self._msi:
            self._own_msi(get)
        self.msix: Msix | None = None
        self.table_bar = -1
        self._table = (0, 0)
        if self._msix_offset:
            self.msix = Msix(irq.msi_vectors(count))
            overlay.own(self._msix_offset + CONTROL, count - 1, 2)
            place = get(self._msix_offset + TABLE, 4)
            self.table_bar = place & BIR
            self._table = (place & ~BIR, (place & ~BIR) + ENTRY_SIZE * count)
        self._msi_vectors = irq.msi_vectors(self._msi_max()) if self._msi else []

    def _own_msi(self, get: Callable[[int, int], int]) -> None:
        control = get(self._msi + CONTROL, 2) & ~(MSI_ENABLE | MSI_COUNT_MASK)
        # Masking single vectors is optional, and VFIO does not do it for us: not offered.
        control &= ~MSI_MASKING
        self._msi_size = 14 if control & MSI_64 else 10
        self._overlay.own(self._msi + CONTROL, control, 2)
        self._overlay.own(self._msi + 4, 0, self._msi_size - 4)

    def _msi_max(self) -> int:
        most = 1 << (self._overlay.get(self._msi + CONTROL, 2) >> 1 & 7)
        return min(most, self._device.get_irq_count(vfio.MSI))

    # --- where the MSI-X table is ---

    def table_range(self, bar: int) -> tuple[int, int]:
        """[start, end) of the table in this BAR; (0, 0) when it is elsewhere."""
        return self._table if bar == self.table_bar else (0, 0)

    def around_table(self, bar: int, start: int, end: int) -> list[tuple[int, int]]:
        """[start, end) of a BAR without the pages that hold the table."""
        table, table_end = self.table_range(bar)
        if table_end == 0:
            return [(start, end)]
        table, table_end = table // PAGE * PAGE, -(-table_end // PAGE) * PAGE
        return [(start, min(end, table)), (max(start, table_end), end)]

    def table_read(self, offset: int, size: int) -> int:
        """Read at ``offset`` of the table's BAR."""
        with self._lock:
            return self.msix.table_read(offset - self._table[0], size) if self.msix else 0

    def table_write(self, offset: int, value: int, size: int) -> None:
        """Write at ``offset`` of the table's BAR."""
        with self._lock:
            if self.msix:
                self.msix.table_write(offset - self._table[0], value, size)

    # --- the capabilities ---

    def covers(self, offset: int, size: int) -> bool:
        """Whether a configuration write belongs to MSI or MSI-X."""
        inside_msi = self._msi and self._msi <= offset < self._msi + self._msi_size
        control = self._msix_offset + CONTROL
        inside_msix = self._msix_offset and offset < control + 2 and control < offset + size
        return bool(inside_msi or inside_msix)

    def write(self, offset: int, value: int, size: int) -> None:
        """A guest's write to one of them."""
        with self._lock:
            self._write(offset, value, size)

    def _write(self, offset: int, value: int, size: int) -> None:
        if self._msix_offset and self._msix_offset <= offset < self._msix_offset + 4:
            control = self._merge(self._msix_offset + CONTROL, 2, offset, value, size)
            self._set_msix(control & (CONTROL_ENABLE | CONTROL_MASK_ALL))
            return
        was_on = self._overlay.get(self._msi + CONTROL, 2) & MSI_ENABLE
        for index, byte in enumerate(value.to_bytes(size, "little"), offset):
            if index >= self._msi + 4:
                self._overlay.own(index, byte, 1)
        control = self._merge(self._msi + CONTROL, 2, offset, value, size)
        kept = self._overlay.get(self._msi + CONTROL, 2) & ~(MSI_ENABLE | MSI_COUNT_MASK)
        control = kept | control & (MSI_ENABLE | MSI_COUNT_MASK)
        self._overlay.own(self._msi + CONTROL, control, 2)
        if was_on or control & MSI_ENABLE:
            self._set_msi(control)

    def _merge(self, register: int, width: int, offset: int, value: int, size: int) -> int:
        """The register's value after a write that may cover only a part of it."""
        data = bytearray(self._overlay.get(register, width).to_bytes(width, "little"))
        for index, byte in enumerate(value.to_bytes(size, "little"), offset):
            if register <= index < register + width:
                data[index - register] = byte
        return int.from_bytes(data, "little")

    def _set_msix(self, control: int) -> None:
        assert self.msix is not None
        was_on = self.msix.enabled
        count = len(self.msix.vectors) - 1
        self._overlay.own(self._msix_offset + CONTROL, control | count, 2)
        if control & CONTROL_ENABLE and not was_on:
            self._switch("msix", [vector.fd for vector in self.msix.vectors])
        self.msix.set_control(control)
        if was_on and not control & CONTROL_ENABLE:
            self.enable_intx()

    def _set_msi(self, control: int) -> None:
        if not control & MSI_ENABLE:
            self.enable_intx()
            return
        count = min(1 << (control >> MSI_COUNT_SHIFT & 7), len(self._msi_vectors))
        wide = bool(control & MSI_64)
        address = self._overlay.get(self._msi + 4, 8 if wide else 4)
        data = self._overlay.get(self._msi + (12 if wide else 8), 2)
        unmask_all(
            [
                (vector, address, data & ~(count - 1) | number)
                for number, vector in enumerate(self._msi_vectors[:count])
            ]
        )
        if self.kind != "msi":
            self._switch("msi", [vector.fd for vector in self._msi_vectors[:count]])

    def _off(self) -> None:
        """Switch off whatever is on."""
        if self.kind == "none":
            return
        if self.kind == "msi":
            for vector in self._msi_vectors:
                vector.mask()
        self._device.disable_irqs(VFIO_INDEX[self.kind])
        if self._line is not None:
            self._line.disconnect()
        # What came when they were masked already is nothing that the next driver asked for.
        for vector in self._vectors(self.kind):
            vector.clear()
        self.kind = "none"

    def _vectors(self, kind: str) -> list[MsiVector]:
        if kind == "msi":
            return self._msi_vectors
        return self.msix.vectors if kind == "msix" and self.msix else []

    def _switch(self, kind: str, fds: list[int]) -> None:
        """From whatever is on to ``kind``; VFIO wants the old kind off first."""
        self._off()
        available = self._device.trigger_eventfds(VFIO_INDEX[kind], fds)
        self._connected = available or len(fds)
        if available:
            log.warning(
                f"{self._name}: the host gives {available} of {len(fds)} {kind} vectors: those "
                f"from {available} on never interrupt the guest; other devices use up the host's"
            )
            if self._device.trigger_eventfds(VFIO_INDEX[kind], fds[:available]):
                raise OSError(errno.ENOSPC, f"not even {available} {kind} vectors are left")
        self.kind = kind
        if log.debugging:
            log.debug(f"{self._name}: interrupts by {kind}, {self._connected} of {len(fds)}")
        if kind not in self._used:
            self._used.append(kind)

    def enable_intx(self) -> None:
        """The line that a device has until its driver chooses messages."""
        self._off()
        if not self._has_intx:
            return
        if self._line is None:
            self._line = self._irq.level_line(self._intx_gsi)
        self._line.connect()
        try:
            self._device.trigger_eventfds(vfio.INTX, [self._line.fd])
        except OSError:
            self._line.disconnect()
            raise
        # It is on, whatever comes of the rest: VFIO wants it off before another kind is on.
        self.kind = "intx"
        # KVM tells of the guest's end of interrupt, and VFIO lets the next one through. An end that
        # comes before waits in the eventfd, which VFIO looks at when it gets it.
        self._device.unmask_eventfd(vfio.INTX, self._line.resample_fd)

    def status(self) -> dict[str, object]:
        """Facts for `status`: what is on, what the driver ever chose, how many there are."""
        offered = {
            "intx": int(self._has_intx),
            "msi": len(self._msi_vectors),
            "msix": len(self.msix.vectors) if self.msix else 0,
        }
        return {
            "in_use": self.kind,
            "messages_used": list(self._used),
            "messages_connected": self._connected if self.kind in ("msi", "msix") else 0,
            **offered,
        }

    def close(self) -> None:
        """Everything off; the router closes lines and vectors."""
        if self._device.fd >= 0:
            try:
                self._off()
            except OSError as error:
                # A device that is gone; closing its file, which follows, switches them off as well.
                log.warning(f"{self._name}: {error}")
