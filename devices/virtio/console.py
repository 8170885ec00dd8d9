"""virtio-console: one port, hvc0 in the guest (virtio 1.2, 5.3)."""

from __future__ import annotations

import struct

from devices.virtio.device import VirtioDevice
from vmm._native.console.conpump import ConsoleWorker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from devices.virtio.device import QueueConfig
    from vmm._native.console.byteport import BytePort
    from vmm._native.memory.guestmem import GuestMemory

F_SIZE = 1
RECEIVE = 0
TRANSMIT = 1
QUEUE_SIZE = 256
# Columns, rows, number of ports, emergency write.
CONFIG = struct.Struct("<HHII")


class Console(VirtioDevice):
    """A console over a byte port; ``size`` is (columns, rows), (0, 0) when not known."""

    device_type = 3
    queue_sizes = (QUEUE_SIZE, QUEUE_SIZE)
    config_size = CONFIG.size
    features = F_SIZE

    def __init__(
        self, name: str, memory: GuestMemory, port: BytePort, size: tuple[int, int]
    ) -> None:
        self.name = name
        self._memory = memory
        self._port = port
        self._size = size
        self._worker: ConsoleWorker | None = None

    def read_config(self, offset: int, size: int) -> int:
        """The 12 bytes of struct virtio_console_config."""
        data = CONFIG.pack(*self._size, 1, 0)
        return int.from_bytes(data[offset : offset + size], "little")

    def resize(self, columns: int, rows: int) -> None:
        """The host's terminal changed its size; control thread."""
        if (columns, rows) != self._size:
            self._size = (columns, rows)
            if self.config_changed is not None:
                self.config_changed()

    def activate(self, features: int, queues: Sequence[QueueConfig], config_call_fd: int) -> None:
        """Start the thread that serves both queues."""
        served = {
            queue.index: (queue.open(self._memory, features), queue.kick_fd, queue.call_fd)
            for queue in queues
        }
        self._worker = ConsoleWorker(
            self._port, served.get(RECEIVE), served.get(TRANSMIT), config_call_fd
        )
        self._worker.start(self.name)

    def reset(self) -> None:
        """Stop the thread."""
        if self._worker is not None:
            self._worker.stop()
            self._worker = None

    def broken(self) -> bool:
        """True when a queue's ring is malformed."""
        worker = self._worker
        return worker is not None and worker.broken != 0

    def status(self) -> dict[str, object]:
        """Bytes that no host reader took in time."""
        return {"dropped": self._port.dropped}
