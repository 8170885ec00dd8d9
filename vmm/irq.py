"""Interrupt lines and messages: GSIs, the routing table and the eventfds behind them.

The router is the only writer of KVM's routing table, which every call replaces as a whole, so the
24 IOAPIC pins are always in it. Interrupts are raised by writing an eventfd: no ioctl, no exit.
A GSI stands for a message, not for a vector: whoever unmasks with a message that is in the table
needs no new table. Measured: KVM takes 0.08 ms for a table, and 0.03 more for each 100 routes.
Source: Documentation/virt/kvm/api.rst, 4.52 (KVM_SET_GSI_ROUTING), 4.75 (KVM_IRQFD).
"""

from __future__ import annotations

import errno
import os
import select
from _thread import allocate_lock

from vmm._native.kvm.vm import GsiRoutes
from vmm.layout import GSI_MAX, IOAPIC_PINS, MSI_GSI_FIRST
from vmm.light.teardown import close_all
from vmm.log.hub import get_logger

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm._native.kvm.vm import VmFd

    Message = tuple[int, int, int]

log = get_logger(__name__)

# An MSI address whose bit 4 is clear carries destination id bits 8..14 in its bits 5..11
# (KVM_FEATURE_MSI_EXT_DEST_ID); KVM takes them in address_hi, bits 8..14.
_EXT_DEST_SHIFT = 5
_EXT_DEST_MASK = 0x7F
_DEST_HI_SHIFT = 8
# A table gets the next messages of the same processor too: Linux takes vectors in ascending order,
# so that one table serves the drivers' next requests.
_AHEAD = 16
_VECTORS = 256
# Messages that nobody uses may be so many, and as many as are in use: those of 128 processors.
_SPARE = 128 * _AHEAD


def _eventfd() -> int:
    return os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)


def _drain(fd: int) -> None:
    try:
        os.eventfd_read(fd)
    except BlockingIOError:
        return


def _message(address: int, data: int) -> Message:
    """Address and data as KVM's table has them."""
    low, high = address & 0xFFFFFFFF, address >> 32
    if not low & 0x10 and not high:
        high = (low >> _EXT_DEST_SHIFT & _EXT_DEST_MASK) << _DEST_HI_SHIFT
        low &= ~(_EXT_DEST_MASK << _EXT_DEST_SHIFT)
    return low, high, data


class IrqLine:
    """One IOAPIC pin as an edge: writing ``fd`` raises the interrupt. Any thread may pulse."""

    def __init__(self, router: IrqRouter, gsi: int) -> None:
        self._router = router
        self.gsi = gsi
        self.fd = _eventfd()
        try:
            router.vm.irqfd(self.fd, gsi)
        except OSError:
            self.close()
            raise

    def pulse(self) -> None:
        """Raise the interrupt once."""
        os.eventfd_write(self.fd, 1)

    def settle(self) -> None:
        """Wait until KVM has taken what was raised: it may hand a pin's interrupts to a thread.

        Source: Linux, virt/kvm/eventfd.c: irqfd_shutdown() flushes the injection.
        """
        self._router.vm.irqfd(self.fd, self.gsi, assign=False)
        self._router.vm.irqfd(self.fd, self.gsi)

    def close(self) -> None:
        """Close the eventfd; KVM drops its end by itself."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class LevelLine:
    """One IOAPIC pin as a level, for a device's INTx.

    Writing ``fd`` raises the line; KVM lowers it at the guest's end of interrupt and then writes
    ``resample_fd``, for whoever raised it to look again. Several devices may share a pin. Connected
    only while the device uses it: a device that changes over to messages no longer holds the line.
    """

    def __init__(self, router: IrqRouter, gsi: int) -> None:
        self._router = router
        self.gsi = gsi
        self.connected = False
        self.fd = self.resample_fd = -1
        try:
            self.fd = _eventfd()
            self.resample_fd = _eventfd()
        except OSError:
            # A guest may ask for it again and again while the host has no descriptors left.
            self.close()
            raise

    def connect(self) -> None:
        """From now on ``fd`` raises the line; idempotent."""
        if not self.connected:
            self._router.vm.irqfd(self.fd, self.gsi, resample_fd=self.resample_fd)
            self.connected = True

    def disconnect(self) -> None:
        """KVM lowers the line, and forgets what nobody waits for any more; idempotent.

        Nobody may write ``fd`` any more. Lowered at once, unless another device shares the pin.
        """
        if self.connected:
            self._router.vm.irqfd(self.fd, self.gsi, assign=False)
            self.connected = False
            _drain(self.fd)
            _drain(self.resample_fd)

    def close(self) -> None:
        """Close both eventfds; KVM drops its ends by itself."""
        self.connected = False
        for fd in (self.fd, self.resample_fd):
            if fd >= 0:
                os.close(fd)
        self.fd = self.resample_fd = -1


class MsiVector:
    """One MSI-X vector. While masked, an interrupt written to ``fd`` waits in the eventfd.

    KVM looks at the eventfd when the irqfd is assigned, so what waited is injected on unmask().
    ``gsi``, None while masked, changes under the router's lock, by calls that the owner's lock lets
    through one at a time; ``fd`` stays till close(), and any thread may write it.
    """

    def __init__(self, router: IrqRouter) -> None:
        self._router = router
        self.fd = _eventfd()
        self.gsi: int | None = None

    @property
    def unmasked(self) -> bool:
        """Whether what is written to ``fd`` arrives at once."""
        return self.gsi is not None

    def unmask(self, address: int, data: int) -> None:
        """Route to ``address``/``data`` (64 and 32 bits of the MSI-X entry) and connect.

        Where KVM refuses that, it is told and the vector stays masked, or becomes so.
        """
        self._router.route([(self, address, data)])

    def mask(self) -> None:
        """Disconnect; later interrupts stay pending."""
        self._router.unroute(self)

    @property
    def pending(self) -> bool:
        """True while an interrupt waits for unmask()."""
        return bool(pending([self]))

    def set_pending(self, pending: bool) -> None:
        """Whether an interrupt waits, of a masked vector."""
        _drain(self.fd)
        if pending:
            os.eventfd_write(self.fd, 1)

    def clear(self) -> None:
        """Forget a pending interrupt (device reset)."""
        _drain(self.fd)

    def close(self) -> None:
        """Disconnect, close the eventfd."""
        if self.fd >= 0:
            try:
                self.mask()
            finally:
                os.close(self.fd)  # KVM drops its end then, if it has not
                self.fd = -1


def unmask_all(entries: Sequence[tuple[MsiVector, int, int]]) -> None:
    """unmask() of many of one machine, each with its address and data: one table for all."""
    if entries:
        entries[0][0]._router.route(entries)


def pending(vectors: Sequence[MsiVector]) -> list[int]:
    """The indices of those in which an interrupt waits for unmask()."""
    poll = select.poll()
    waits: dict[int, int] = {}
    for index, vector in enumerate(vectors):
        if not vector.unmasked and vector.fd >= 0:
            waits[vector.fd] = index
            poll.register(vector.fd, select.POLLIN)
    return sorted([waits[fd] for fd, _ in poll.poll(0)]) if waits else []


class IrqRouter:
    """Owner of the GSIs of one VM. Callable from the control thread and from vCPU threads.

    ``_lock`` holds the routes, the free GSIs and the state of each MsiVector. It is the last one
    that is taken: a device's locks come before it, none after it.
    """

    def __init__(self, vm: VmFd) -> None:
        self.vm = vm
        self._lock = allocate_lock()
        self._table = GsiRoutes()
        for pin in range(IOAPIC_PINS):
            self._table.pin(pin, pin)
        # The messages of the table, and how many vectors are connected to each GSI.
        self._gsis: dict[Message, int] = {}
        self._users: dict[int, int] = {}
        # GSIs from here on have never been anybody's; those given back come before them.
        self._next = MSI_GSI_FIRST
        self._free: list[int] = []
        self._owned: list[IrqLine | LevelLine | MsiVector] = []

    def connect_pins(self) -> None:
        """Replace KVM's default routes; once, right after the interrupt controllers are made.

        The default routes lead the first 16 GSIs to the 8259 pair as well. Nobody has programmed
        that when a guest starts, so an interrupt then arrives as an exception vector (line 13, the
        power button, as 5) and kills the guest.
        """
        with self._lock:
            self.vm.set_gsi_routing(self._table)

    def line(self, gsi: int) -> IrqLine:
        """The IOAPIC pin ``gsi`` as an edge-triggered line."""
        line = IrqLine(self, gsi)
        self._owned.append(line)
        return line

    def level_line(self, gsi: int) -> LevelLine:
        """The IOAPIC pin ``gsi`` as a level-triggered line, not yet connected."""
        line = LevelLine(self, gsi)
        self._owned.append(line)
        return line

    def msi_vectors(self, count: int) -> list[MsiVector]:
        """``count`` masked vectors."""
        vectors: list[MsiVector] = []
        for _ in range(count):
            vectors.append(MsiVector(self))
            # At once: the next may find no descriptor.
            self._owned.append(vectors[-1])
        return vectors

    def route(self, entries: Sequence[tuple[MsiVector, int, int]]) -> None:
        """Have each vector's message (address, data) in the table, then connect its irqfd.

        In this order: an irqfd without its route would lose interrupts. What KVM refuses leaves
        no trace in the table: it is set as a whole, and every later vector would be refused.
        """
        refused = []
        with self._lock:
            wanted = [(vector, _message(address, data)) for vector, address, data in entries]
            if len(wanted) > 1:
                self._have_all([message for _, message in wanted])
            for (vector, message), (_, address, data) in zip(wanted, entries, strict=True):
                try:
                    self._connect(vector, message)
                except OSError as error:
                    self._disconnect(vector)
                    refused.append((address, data, str(error)))
        for address, data, why in refused:
            log.warning(f"an MSI vector stays masked: address {address:#x}, data {data:#x}: {why}")

    def _have_all(self, messages: list[Message]) -> None:
        """One table for all of them; where that is refused, each gets its own, by _connect()."""
        if self._gsis.keys() >= {*messages}:
            return
        try:
            self._have(messages)
        except OSError as error:
            if log.debugging:
                log.debug(f"{len(messages)} MSI routes one by one: {error}")

    def _connect(self, vector: MsiVector, message: Message) -> None:
        gsi = self._gsis.get(message)
        if gsi is None:
            self._have([message])
            gsi = self._gsis[message]
        if vector.gsi == gsi:
            return
        # What comes in between waits in the eventfd.
        self._disconnect(vector)
        self.vm.irqfd(vector.fd, gsi)
        vector.gsi = gsi
        self._users[gsi] = self._users.get(gsi, 0) + 1

    def _disconnect(self, vector: MsiVector) -> None:
        if vector.gsi is not None:
            self.vm.irqfd(vector.fd, vector.gsi, assign=False)
            self._users[vector.gsi] -= 1
            if not self._users[vector.gsi]:
                del self._users[vector.gsi]
            vector.gsi = None

    def _have(self, messages: list[Message]) -> None:
        """Give KVM a table with all of them, or the first for which there are GSIs.

        OSError where it refuses, and the table is as before.
        """
        new = [*dict.fromkeys([m for m in messages if m not in self._gsis])]
        spare = len(self._gsis) - len(self._users)
        if spare > len(self._users) + _SPARE or len(new) > self._gsis_left():
            self._forget_all_but(messages)
        new = new[: self._gsis_left()]
        if not new:
            raise OSError(errno.ENOSPC, f"no GSI is left, KVM routes at most {GSI_MAX}")
        added: list[Message] = []
        try:
            for message in new:
                self._add(message, added)
            for message in new:
                self._add_next(message, added)
            self.vm.set_gsi_routing(self._table)
        except BaseException:
            for message in added:
                self._remove(message)
            raise

    def _add_next(self, message: Message, added: list[Message]) -> None:
        """Those that probably come next, as far as there are GSIs."""
        low, high, data = message
        for vector in range(data + 1, min(data + _AHEAD, _VECTORS)):
            if (low, high, vector) not in self._gsis and self._gsis_left():
                self._add((low, high, vector), added)

    def _gsis_left(self) -> int:
        return len(self._free) + GSI_MAX - self._next

    def _add(self, message: Message, added: list[Message]) -> None:
        if self._free:
            gsi = self._free.pop()
        else:
            gsi = self._next
            self._next += 1
        self._gsis[message] = gsi
        added.append(message)
        self._table.message(gsi, *message)

    def _remove(self, message: Message) -> None:
        gsi = self._gsis.pop(message)
        self._table.remove(gsi)
        self._free.append(gsi)

    def _forget_all_but(self, kept: list[Message]) -> None:
        """What nobody is connected to; KVM hears of it with the next table."""
        needed = {*kept}
        for message, gsi in list(self._gsis.items()):
            if gsi not in self._users and message not in needed:
                self._remove(message)

    def unroute(self, vector: MsiVector) -> None:
        """Disconnect the irqfd; the message stays, so that unmasking again costs no table."""
        with self._lock:
            self._disconnect(vector)

    def close(self) -> None:
        """Close every line and vector handed out; the VM fd must still be open."""
        owned, self._owned = self._owned, []
        close_all([each.close for each in owned])
