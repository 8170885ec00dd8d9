"""The common configuration registers of the PCI transport (virtio 1.2, 4.1.4.3)."""

from __future__ import annotations

from devices.virtio.device import F_VERSION_1, QueueConfig
from vmm.log.hub import get_logger

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmm._native.ports.registers import VirtioRegisters

log = get_logger(__name__)

SIZE = 56
NO_VECTOR = 0xFFFF
ACKNOWLEDGE = 1
DRIVER = 2
DRIVER_OK = 4
FEATURES_OK = 8
NEEDS_RESET = 0x40
FAILED = 0x80
DWORD = 0xFFFFFFFF


class QueueRegisters:
    """What the driver wrote for one queue."""

    def __init__(self, size_max: int) -> None:
        self.size_max = size_max
        self.reset()

    def reset(self) -> None:
        """The state after a device reset."""
        self.size = self.size_max
        self.vector = NO_VECTOR
        self.enabled = False
        self.addresses = [0, 0, 0]


class CommonConfig:
    """The registers. ``on_status`` is called when the driver changed device_status.

    queue_select lives in ``registers``, which serves it natively to vCPUs.

    Accessed from vCPU threads with the GIL held, one at a time (the transport holds a lock).
    """

    def __init__(
        self,
        features: int,
        queue_sizes: Sequence[int],
        vectors: int,
        on_status: Callable[[int], None],
        is_broken: Callable[[], bool],
        registers: VirtioRegisters,
    ) -> None:
        self.offered = features | F_VERSION_1
        self.registers = registers
        self.queues = [QueueRegisters(size) for size in queue_sizes]
        self._vectors = vectors
        self._on_status = on_status
        self._is_broken = is_broken
        self.generation = 0
        # For the log; the transport knows it.
        self.name = "virtio"
        self.reset()

    def reset(self) -> None:
        """Everything but the generation back to its reset state."""
        self.feature_select = 0
        self.driver_feature_select = 0
        self.accepted = 0
        self.config_vector = NO_VECTOR
        self.status = 0
        self.registers.selected = 0
        for queue in self.queues:
            queue.reset()

    @property
    def queue(self) -> QueueRegisters | None:
        """The selected queue, None when there is no such queue."""
        selected = self.registers.selected
        return self.queues[selected] if selected < len(self.queues) else None

    def enabled_queues(
        self, kick_fds: list[int], call_fd: Callable[[int], int]
    ) -> list[QueueConfig]:
        """The queues that the driver switched on."""
        return [
            QueueConfig(
                index,
                q.size,
                q.addresses[0],
                q.addresses[1],
                q.addresses[2],
                kick_fds[index],
                call_fd(q.vector),
            )
            for index, q in enumerate(self.queues)
            if q.enabled
        ]

    def read(self, offset: int, size: int) -> int:
        """Read at any width: registers are assembled from their bytes."""
        if size == 8:
            return self.read(offset, 4) | self.read(offset + 4, 4) << 32
        base = offset & ~3
        if offset + size > base + 4:
            return 0
        return self._dword(base) >> 8 * (offset - base) & ((1 << 8 * size) - 1)

    def _dword(self, base: int) -> int:
        queue = self.queue
        if base == 0x00:
            return self.feature_select
        if base == 0x04:
            return self._feature_page(self.offered, self.feature_select)
        if base == 0x08:
            return self.driver_feature_select
        if base == 0x0C:
            return self._feature_page(self.accepted, self.driver_feature_select)
        if base == 0x10:
            return self.config_vector | len(self.queues) << 16
        if base == 0x14:
            status = self.status | (NEEDS_RESET if self.status and self._is_broken() else 0)
            return status | self.generation << 8 | self.registers.selected << 16
        if queue is None:
            return 0
        if base == 0x18:
            return queue.size | queue.vector << 16
        if base == 0x1C:
            return int(queue.enabled) | self.registers.selected << 16
        if 0x20 <= base < SIZE:
            return queue.addresses[(base - 0x20) // 8] >> 8 * (base & 4) & DWORD
        return 0

    @staticmethod
    def _feature_page(features: int, select: int) -> int:
        return features >> 32 * select & DWORD if select < 2 else 0

    def write(self, offset: int, value: int, size: int) -> None:
        """Write a register at its own width (virtio 1.2, 4.1.3.1), or two halves of an address."""
        if size == 8 and offset >= 0x20:
            self._write_address(offset, value & DWORD)
            self._write_address(offset + 4, value >> 32)
        elif size == 4:
            self._write_dword(offset, value)
        elif size == 2:
            self._write_word(offset, value)
        elif size == 1 and offset == 0x14:
            self._write_status(value)

    def _write_dword(self, offset: int, value: int) -> None:
        if offset == 0x00:
            self.feature_select = value
        elif offset == 0x08:
            self.driver_feature_select = value
        elif offset == 0x0C:
            self._write_features(value)
        elif offset >= 0x20:
            self._write_address(offset, value)

    def _write_features(self, value: int) -> None:
        # Negotiation ends with FEATURES_OK (3.1.1, step 5).
        select = self.driver_feature_select
        if select < 2 and not self.status & FEATURES_OK:
            self.accepted = self.accepted & ~(DWORD << 32 * select) | value << 32 * select

    def _write_word(self, offset: int, value: int) -> None:
        queue = self.queue
        if offset == 0x10:
            self.config_vector = value if value < self._vectors else NO_VECTOR
        elif offset == 0x16:
            self.registers.selected = value
        elif queue is None or queue.enabled:
            return
        elif offset == 0x18:
            if 0 < value <= queue.size_max and not value & (value - 1):
                queue.size = value
        elif offset == 0x1A:
            queue.vector = value if value < self._vectors else NO_VECTOR
        elif offset == 0x1C and value == 1:
            queue.enabled = True

    def _write_address(self, offset: int, value: int) -> None:
        queue = self.queue
        if queue is None or queue.enabled or offset & 3 or offset + 4 > SIZE:
            return
        index = (offset - 0x20) // 8
        shift = 8 * (offset & 4)
        old = queue.addresses[index]
        queue.addresses[index] = old & ~(DWORD << shift) | value << shift

    def _tell_status(self, value: int, added: int) -> None:
        told = f"{self.name}: status {self.status:#04x}, driver writes {value:#04x}"
        if value & FEATURES_OK and not self.status & FEATURES_OK:
            taken = "taken" if added & FEATURES_OK else "refused"
            told += f": features {self.accepted:#x} of {self.offered:#x} {taken}"
        log.debug(told)
        if added & DRIVER_OK:
            for index, q in enumerate(self.queues):
                places = ", ".join([f"{address:#x}" for address in q.addresses])
                state = "on" if q.enabled else "off"
                log.debug(
                    f"{self.name}: queue {index} {state}: size {q.size}, areas at {places}, "
                    f"vector {q.vector:#x}"
                )

    def _write_status(self, value: int) -> None:
        if value == 0:
            if log.debugging:
                log.debug(f"{self.name}: reset by its driver")
            self._on_status(0)
            return
        added = value & ~self.status & ~NEEDS_RESET
        # Bits are only ever added; clearing takes a reset (2.1.1).
        if added & FEATURES_OK and (
            self.accepted & ~self.offered or not self.accepted & F_VERSION_1
        ):
            added &= ~FEATURES_OK
        if log.debugging:
            self._tell_status(value, added)
        old = self.status
        self.status |= added
        if added & DRIVER_OK and not old & DRIVER_OK:
            self._on_status(self.status)
