"""Interrupt lines and messages: GSIs, the routing table and the eventfds behind them.

The router is the only writer of KVM's routing table, which every call replaces as a whole, so the
24 IOAPIC pins are always in it. Interrupts are raised by writing an eventfd: no ioctl, no exit.
Source: Documentation/virt/kvm/api.rst, 4.52 (KVM_SET_GSI_ROUTING), 4.75 (KVM_IRQFD).
"""

from __future__ import annotations

import os
import select
from _thread import allocate_lock

from vmm.errors import HostError
from vmm.layout import GSI_MAX, IOAPIC_PINS, MSI_GSI_FIRST

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmm._native.kvm.vm import VmFd

# An MSI address whose bit 4 is clear carries destination id bits 8..14 in its bits 5..11
# (KVM_FEATURE_MSI_EXT_DEST_ID); KVM takes them in address_hi, bits 8..14.
_EXT_DEST_SHIFT = 5
_EXT_DEST_MASK = 0x7F
_DEST_HI_SHIFT = 8


def _eventfd() -> int:
    return os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)


def _drain(fd: int) -> None:
    try:
        os.eventfd_read(fd)
    except BlockingIOError:
        return


class IrqLine:
    """One IOAPIC pin as an edge: writing ``fd`` raises the interrupt. Any thread may pulse."""

    def __init__(self, router: IrqRouter, gsi: int) -> None:
        self.gsi = gsi
        self.fd = _eventfd()
        router.vm.irqfd(self.fd, gsi)

    def pulse(self) -> None:
        """Raise the interrupt once."""
        os.eventfd_write(self.fd, 1)

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
        self.fd = _eventfd()
        self.resample_fd = _eventfd()
        self.connected = False

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
        if self.fd >= 0:
            self.connected = False
            os.close(self.fd)
            os.close(self.resample_fd)
            self.fd = -1


class MsiVector:
    """One MSI-X vector. While masked, an interrupt written to ``fd`` waits in the eventfd.

    KVM looks at the eventfd when the irqfd is assigned, so what waited is injected on unmask().
    """

    def __init__(self, router: IrqRouter) -> None:
        self._router = router
        self.fd = _eventfd()
        self.gsi: int | None = None
        self.unmasked = False

    def unmask(self, address: int, data: int) -> None:
        """Route to ``address``/``data`` (64 and 32 bits of the MSI-X entry) and connect."""
        self._router.route(self, address, data)

    def mask(self) -> None:
        """Disconnect; later interrupts stay pending."""
        self._router.unroute(self)

    @property
    def pending(self) -> bool:
        """True while an interrupt waits for unmask()."""
        if self.unmasked or self.fd < 0:
            return False
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        return bool(poll.poll(0))

    def clear(self) -> None:
        """Forget a pending interrupt (device reset)."""
        _drain(self.fd)

    def close(self) -> None:
        """Disconnect, give the GSI back, close the eventfd."""
        if self.fd >= 0:
            self._router.release(self)
            os.close(self.fd)
            self.fd = -1


class IrqRouter:
    """Owner of the GSIs of one VM. Callable from the control thread and from vCPU threads."""

    def __init__(self, vm: VmFd) -> None:
        self.vm = vm
        self._lock = allocate_lock()
        self._routes: dict[int, tuple[int, int, int]] = {}
        self._free = list(range(GSI_MAX - 1, MSI_GSI_FIRST - 1, -1))
        self._pins = [(pin, pin) for pin in range(IOAPIC_PINS)]
        self._owned: list[IrqLine | LevelLine | MsiVector] = []

    def connect_pins(self) -> None:
        """Replace KVM's default routes; once, right after the interrupt controllers are made.

        The default routes lead the first 16 GSIs to the 8259 pair as well. Nobody has programmed
        that when a guest starts, so an interrupt then arrives as an exception vector (line 13, the
        power button, as 5) and kills the guest.
        """
        with self._lock:
            self._commit()

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
        """``count`` masked vectors; a GSI is taken only when one is first unmasked."""
        vectors = [MsiVector(self) for _ in range(count)]
        self._owned += vectors
        return vectors

    def route(self, vector: MsiVector, address: int, data: int) -> None:
        """Point the vector's GSI at a message, then connect its irqfd.

        In this order: an irqfd without its route would lose interrupts.
        """
        with self._lock:
            if vector.gsi is None:
                if not self._free:
                    raise HostError(
                        f"no GSI left for an MSI vector: KVM routes at most {GSI_MAX}",
                        "use fewer devices or fewer queues",
                    )
                vector.gsi = self._free.pop()
            low, high = address & 0xFFFFFFFF, address >> 32
            if not low & 0x10 and not high:
                high = (low >> _EXT_DEST_SHIFT & _EXT_DEST_MASK) << _DEST_HI_SHIFT
                low &= ~(_EXT_DEST_MASK << _EXT_DEST_SHIFT)
            if self._routes.get(vector.gsi) != (low, high, data):
                self._routes[vector.gsi] = (low, high, data)
                self._commit()
            if not vector.unmasked:
                self.vm.irqfd(vector.fd, vector.gsi)
                vector.unmasked = True

    def unroute(self, vector: MsiVector) -> None:
        """Disconnect the irqfd; the route stays, so that unmasking again costs no table."""
        with self._lock:
            if vector.unmasked and vector.gsi is not None:
                self.vm.irqfd(vector.fd, vector.gsi, assign=False)
                vector.unmasked = False

    def release(self, vector: MsiVector) -> None:
        """Take back the vector's GSI."""
        self.unroute(vector)
        with self._lock:
            if vector.gsi is not None:
                self._routes.pop(vector.gsi, None)
                self._free.append(vector.gsi)
                vector.gsi = None

    def _commit(self) -> None:
        messages = [(gsi, *route) for gsi, route in sorted(self._routes.items())]
        self.vm.set_gsi_routing(self._pins, messages)

    def close(self) -> None:
        """Close every line and vector handed out; the VM fd must still be open."""
        for owned in self._owned:
            owned.close()
        self._owned.clear()
