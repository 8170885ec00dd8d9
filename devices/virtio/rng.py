"""virtio-rng: the host's random numbers (virtio 1.2, 5.4)."""

from __future__ import annotations

from devices.virtio.device import VirtioDevice
from vmm._native.virtio.rngpump import RngWorker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from devices.virtio.device import QueueConfig
    from vmm._native.memory.guestmem import GuestMemory
    from vmm._native.virtio.worker import Worker

QUEUE_SIZE = 256


class Rng(VirtioDevice):
    """Entropy from getrandom(2), always present."""

    device_type = 4
    queue_sizes = (QUEUE_SIZE,)

    def __init__(self, name: str, memory: GuestMemory) -> None:
        self.name = name
        self._memory = memory
        self._worker: RngWorker | None = None

    def prepare(self, features: int, queues: Sequence[QueueConfig], config_call_fd: int) -> None:
        """Make the worker; a driver without a queue gets none."""
        self.opened = {queue.index: queue.open(self._memory, features) for queue in queues}
        for queue in queues:
            self._worker = RngWorker(
                self.opened[queue.index], queue.kick_fd, queue.call_fd, config_call_fd
            )

    def workers(self) -> Sequence[tuple[str, Worker]]:
        """The one thread."""
        return () if self._worker is None else ((self.name, self._worker),)

    def reset(self) -> None:
        """Stop the worker."""
        if self._worker is not None:
            self._worker.stop()
            self._worker = None
        self.opened = {}

    def broken(self) -> bool:
        """True when the ring is malformed."""
        worker = self._worker
        return worker is not None and worker.broken != 0
