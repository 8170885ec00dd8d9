"""virtio over PCI, the modern transport (virtio 1.2, 4.1).

All registers are in BAR 0; interrupts are MSI-X only; doorbells reach the device's thread as
eventfds, without an exit to us.
"""

from __future__ import annotations

import os
import struct
from _thread import allocate_lock

from devices.pci.bar import Bar
from devices.pci.config_space import ConfigSpace
from devices.pci.function import BAR_DWORDS, PciFunction
from devices.pci.msix import CONTROL, Msix
from devices.virtio.common_config import (
    DRIVER_OK,
    FEATURES_OK,
    NEEDS_RESET,
    NO_VECTOR,
    CommonConfig,
)
from devices.virtio.common_config import SIZE as COMMON_SIZE
from vmm._native.virtio.registers import VirtioRegisters
from vmm.errors import HostError
from vmm.light.teardown import close_all
from vmm.log.hub import get_logger

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from devices.virtio.device import VirtioDevice
    from vmm.irq import MsiVector
    from vmm.vm import Doorbells

log = get_logger(__name__)

VENDOR = 0x1AF4
DEVICE_BASE = 0x1040
REVISION = 1
BAR_SIZE = 0x80000
ISR = 0x2000
DEVICE = 0x4000
NOTIFY = 0x6000
NOTIFY_SIZE = 0x1000
NOTIFY_MULTIPLIER = 4
MSIX_TABLE = 0x8000
MSIX_TABLE_SIZE = 0x40000
MSIX_PBA = 0x48000
MSIX_PBA_SIZE = 0x800
VENDOR_CAPABILITY = 0x09
CAPABILITY = struct.Struct("<BBBBB3xII")
CFG_COMMON, CFG_NOTIFY, CFG_ISR, CFG_DEVICE, CFG_PCI = 1, 2, 3, 4, 5


class VirtioPciFunction(PciFunction):
    """One virtio device as a PCI function.

    ``active``: the device works for its driver. ``_lock`` holds that, the registers, the device's
    life (activate() and reset()), MSI-X and the doorbells with ``_bell_base``, the address they
    follow. It is taken under the bus's lock
    (PciRoot) or alone; the interrupt router's comes under it. status() takes none, since the
    control thread must not wait for a reset that waits for a disk.
    The doorbell eventfds are blocking, as io_uring reads them; nobody else reads them.
    """

    def __init__(
        self, device: VirtioDevice, vectors: list[MsiVector], doorbells: Doorbells
    ) -> None:
        identity = DEVICE_BASE + device.device_type
        config = ConfigSpace(VENDOR, identity, device.pci_class, REVISION, (VENDOR, identity))
        super().__init__(device.name, config)
        self.device = device
        self.msix = Msix(vectors)
        self._bar_registers = VirtioRegisters(self, len(device.queue_sizes))
        self.common = CommonConfig(
            device.features, device.queue_sizes, len(vectors), self._status_changed, device.broken,
            self._bar_registers,
        )  # fmt: skip
        self.common.name = device.name
        self._doorbells = doorbells
        self._kick_fds: list[int] = []
        self._belled: list[tuple[int, int]] = []
        self._bell_base: int | None = None
        self.active = False
        # How the driver's set-up is done: by another thread, where a vCPU's may not.
        self.carry_out: Callable[[Callable[[], None]], None] = _at_once
        # Writes to configuration space.
        self._changes = 0
        self._lock = allocate_lock()
        self.bar = Bar(0, BAR_SIZE, wide=not device.low_bar)
        self.add_bar(self.bar)
        self._window = 0
        self._msix_offset = 0
        self._add_capabilities()
        device.config_changed = self.config_interrupt
        self._open_kicks()

    def _open_kicks(self) -> None:
        try:
            for _ in self.device.queue_sizes:
                self._kick_fds.append(os.eventfd(0, os.EFD_CLOEXEC))
        except OSError:
            self._close_kicks()
            raise

    def _add_capabilities(self) -> None:
        config = self.config

        def vendor(kind: int, offset: int, length: int, extra: bytes = b"") -> int:
            size = CAPABILITY.size + len(extra)
            body = CAPABILITY.pack(VENDOR_CAPABILITY, 0, size, kind, 0, offset, length)
            return config.add_capability(body + extra)

        vendor(CFG_COMMON, 0, COMMON_SIZE)
        vendor(CFG_ISR, ISR, 1)
        if self.device.config_size:
            vendor(CFG_DEVICE, DEVICE, self.device.config_size)
        vendor(CFG_NOTIFY, NOTIFY, NOTIFY_SIZE, struct.pack("<I", NOTIFY_MULTIPLIER))
        self._window = vendor(CFG_PCI, 0, 0, bytes(4))
        self.asked_dwords = BAR_DWORDS | 1 << (self._window + 16 >> 2)
        # The driver chooses bar, offset and length of the window.
        config.allow(self._window + 4, 0xFF, 1)
        config.allow(self._window + 8, (1 << 64) - 1, 8)
        capability = self.msix.capability(0, MSIX_TABLE, MSIX_PBA)
        self._msix_offset = config.add_capability(capability)
        config.allow(self._msix_offset + CONTROL, 0xC000, 2)

    def bar_target(self, bar: Bar) -> object:
        """The registers themselves (see read() and write())."""
        return self._bar_registers

    def bar_moved(self, bar: Bar, old: int | None, new: int | None) -> None:
        """Doorbells follow the BAR."""
        with self._lock:
            self._detach_bells()
            self._bell_base = new
            if self.active:
                self._attach_bells()

    # --- configuration space ---

    def config_read(self, offset: int, size: int) -> int:
        """As the base, with the window into BAR 0 (4.1.4.9)."""
        if self._in_window(offset):
            target, length = self._window_target()
            if length in (1, 2, 4) and length == size and offset == self._window + 16:
                return self.read(target, length)
            return 0
        return super().config_read(offset, size)

    def config_write(self, offset: int, value: int, size: int) -> None:
        """As the base, with the window into BAR 0 and MSI-X control."""
        if self._in_window(offset):
            target, length = self._window_target()
            if length in (1, 2, 4) and length == size and offset == self._window + 16:
                self.write(target, value, length)
            return
        super().config_write(offset, value, size)
        self._changes += 1
        control = self._msix_offset + CONTROL
        if offset < control + 2 and control < offset + size:
            with self._lock:
                self.msix.set_control(self.msix_control)
            if log.debugging:
                log.debug(f"{self.name}: MSI-X control {self.msix_control:#06x}")

    def _in_window(self, offset: int) -> bool:
        return self._window + 16 <= offset < self._window + 20

    def _window_target(self) -> tuple[int, int]:
        offset = self.config.get(self._window + 8, 4)
        length = self.config.get(self._window + 12, 4)
        return offset, length if offset + length <= BAR_SIZE else 0

    # --- BAR 0 ---

    def read(self, offset: int, size: int) -> int:
        """A register read in BAR 0; what is not decoded reads 0."""
        with self._lock:
            if offset + size <= COMMON_SIZE:
                return self.common.read(offset, size)
            if DEVICE <= offset < DEVICE + self.device.config_size:
                return self._read_device(offset - DEVICE, size)
            if MSIX_TABLE <= offset < MSIX_TABLE + MSIX_TABLE_SIZE:
                return self.msix.table_read(offset - MSIX_TABLE, size)
            if MSIX_PBA <= offset < MSIX_PBA + MSIX_PBA_SIZE:
                return self.msix.pba_read(offset - MSIX_PBA, size)
        return 0

    def write(self, offset: int, value: int, size: int) -> None:
        """A register write in BAR 0; what is not decoded is ignored."""
        with self._lock:
            if offset + size <= COMMON_SIZE:
                self.common.write(offset, value, size)
            elif offset >= DEVICE and offset + size <= DEVICE + self.device.config_size:
                self.device.write_config(offset - DEVICE, value, size)
            elif NOTIFY <= offset < NOTIFY + NOTIFY_SIZE:
                self._kick((offset - NOTIFY) // NOTIFY_MULTIPLIER)
            elif MSIX_TABLE <= offset < MSIX_TABLE + MSIX_TABLE_SIZE:
                self.msix.table_write(offset - MSIX_TABLE, value, size)

    def _read_device(self, offset: int, size: int) -> int:
        inside = min(size, self.device.config_size - offset)
        if inside == size:
            return self.device.read_config(offset, size)
        value = 0
        for index in range(inside):
            value |= self.device.read_config(offset + index, 1) << 8 * index
        return value

    def _kick(self, index: int) -> None:
        # Reached when the kernel has no doorbell for this address (a device not yet active).
        if not self.active or index >= len(self._kick_fds):
            return
        if self.device.doorbells:
            os.eventfd_write(self._kick_fds[index], 1)
        else:
            self.device.notified(index)

    # --- life ---

    def _status_changed(self, status: int) -> None:
        if status == 0:
            self.carry_out(self._reset)
        elif status & DRIVER_OK and status & FEATURES_OK:
            self.carry_out(self._activate)

    def _activate(self) -> None:
        try:
            self.prepare()
            self.device.go_on()
        except (ValueError, OSError, MemoryError) as error:
            # A driver's nonsense, or a host without descriptors, threads or memory to spare.
            log.warning(f"{self.name}: the driver cannot use it: {error}")
            self.device.reset()
            self._needs_reset()
            return
        self.active = True
        self._attach_bells()

    def prepare(self) -> None:
        """The device as its driver set it up, not yet working; raises as VirtioDevice.prepare()."""
        queues = self.common.enabled_queues(self._kick_fds, self._call_fd)
        self.device.prepare(self.common.accepted, queues, self._call_fd(self.common.config_vector))

    def set_active(self, active: bool) -> None:
        """Ring the doorbells at the device, or no more."""
        self._detach_bells()
        self.active = active
        if active:
            self._attach_bells()

    def stop(self) -> None:
        """No doorbell, no threads, nothing rung."""
        self.set_active(False)
        self.device.reset()
        for fd in self._kick_fds:
            _drain(fd)

    def _reset(self) -> None:
        self.stop()
        self.common.reset()

    def quiesce(self) -> None:
        """The device's threads stop between two requests; see PciFunction."""
        self.device.quiesce()

    def go_on(self) -> None:
        """They work again; HostError when the host lacks a thread for it."""
        try:
            self.device.go_on()
        except OSError as error:
            raise HostError(
                f"{self.name}: its threads cannot go on: {error}",
                "raise the limit of processes (ulimit -u) or of descriptors (ulimit -n)",
            ) from error

    def mark(self) -> object:
        """See PciFunction; counts configuration space, requests and what the host did."""
        return self._changes, self.common.generation, self.device.mark()

    def state(self) -> dict[str, object]:
        """The transport, its queues and its device; quiesced."""
        from devices.virtio.state import function_state

        with self._lock:
            return function_state(self)

    def set_state(self, state: object) -> None:
        """A state() again; quiesced, and go_on() follows. StateError, and nothing changed.

        HostError when the host lacks what the device's threads need.
        """
        from devices.virtio.state import set_function_state

        with self._lock:
            set_function_state(self, state)

    def failed(self) -> None:
        """Something raised: the driver is told that only a reset helps (virtio 1.2, 2.1.2)."""
        with self._lock:
            self._needs_reset()

    def _needs_reset(self) -> None:
        if self.common.status:
            self.common.status |= NEEDS_RESET
            self._raise_config()

    def _attach_bells(self) -> None:
        base = self._bell_base
        if base is None or not self.device.doorbells:
            return
        for index, fd in enumerate(self._kick_fds):
            if self.common.queues[index].enabled:
                gpa = base + NOTIFY + index * NOTIFY_MULTIPLIER
                try:
                    self._doorbells.attach(gpa, fd)
                except OSError as error:
                    # Each ring of the bell is an exit then, see _kick().
                    log.warning(f"{self.name}: no doorbell at {gpa:#x}: {error}")
                    continue
                self._belled.append((gpa, fd))

    def _detach_bells(self) -> None:
        while self._belled:
            gpa, fd = self._belled.pop()
            try:
                self._doorbells.detach(gpa, fd)
            except OSError as error:
                # The device must stop all the same; a write there rings a bell that nobody hears.
                log.warning(f"{self.name}: doorbell at {gpa:#x}: {error}")

    @property
    def msix_control(self) -> int:
        """Message control, as configuration space has it."""
        return self.config.get(self._msix_offset + CONTROL, 2)

    def _call_fd(self, vector: int) -> int:
        return -1 if vector == NO_VECTOR else self.msix.vectors[vector].fd

    def config_interrupt(self) -> None:
        """The device's configuration changed; callable on the control thread."""
        with self._lock:
            self.common.generation = self.common.generation + 1 & 0xFF
            if self.active:
                self._raise_config()

    def _raise_config(self) -> None:
        fd = self._call_fd(self.common.config_vector)
        if fd >= 0:
            os.eventfd_write(fd, 1)

    def status(self) -> dict[str, object]:
        """Facts for `status`."""
        return {
            "name": self.name,
            "slot": self.slot,
            "active": self.active,
            "bar": self.bar.mapped,
            **self.device.status(),
        }

    def close(self) -> None:
        """Stop the device and close the doorbells; the vCPUs have ended before."""
        with self._lock:
            self.active = False
            close_all([self._detach_bells, self.device.close, self._close_kicks])

    def _close_kicks(self) -> None:
        for fd in self._kick_fds:
            os.close(fd)
        self._kick_fds = []


def _at_once(job: Callable[[], None]) -> None:
    job()


def _drain(fd: int) -> None:
    """Empty a blocking eventfd without waiting on it."""
    import select

    poll = select.poll()
    poll.register(fd, select.POLLIN)
    if poll.poll(0):
        os.eventfd_read(fd)
