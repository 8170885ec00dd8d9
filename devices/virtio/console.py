"""virtio-console: one port, hvc0 in the guest (virtio 1.2, 5.3)."""

from __future__ import annotations

import struct

from devices.virtio.device import VirtioDevice
from vmm._native.console.conpump import ConsoleWorker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from devices.virtio.device import QueueConfig
    from vmm._native.console.byteport import BytePort
    from vmm._native.memory.guestmem import GuestMemory
    from vmm._native.virtio.worker import Worker
    from vmm.light.state import Check

F_SIZE = 1
RECEIVE = 0
TRANSMIT = 1
QUEUE_SIZE = 256
# Of a state; how much can wait is known by the host's end alone.
INPUT_MAX = 1 << 20
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

    def prepare(self, features: int, queues: Sequence[QueueConfig], config_call_fd: int) -> None:
        """Make the thread that serves both queues."""
        self.opened = {queue.index: queue.open(self._memory, features) for queue in queues}
        served = {
            queue.index: (self.opened[queue.index], queue.kick_fd, queue.call_fd)
            for queue in queues
        }
        self._worker = ConsoleWorker(
            self._port, served.get(RECEIVE), served.get(TRANSMIT), config_call_fd
        )

    def workers(self) -> Sequence[tuple[str, Worker]]:
        """The one thread."""
        return () if self._worker is None else ((self.name, self._worker),)

    def mark(self) -> object:
        """As the base; input that arrives, and a new size, count as well."""
        from vmm._native.console.portinput import input_mark

        return self.positions(), input_mark(self._port), self._size

    def state(self) -> dict[str, object]:
        """The size that the driver knows, and input that it has not taken."""
        from vmm._native.console.portinput import pending_input

        return {"version": 1, "size": list(self._size), "input": pending_input(self._port)}

    def state_fields(self) -> Mapping[str, Check]:
        """See VirtioDevice."""
        from vmm.light.state import data, many, unsigned

        return {"size": many(unsigned(16), 2), "input": data(0, INPUT_MAX)}

    def take_state(self, found: dict[str, Any]) -> None:
        """A state() again, without telling the driver."""
        from vmm._native.console.portinput import set_pending_input

        self._size = found["size"][0], found["size"][1]
        set_pending_input(self._port, found["input"])

    def reset(self) -> None:
        """Stop the thread."""
        if self._worker is not None:
            self._worker.stop()
            self._worker = None
        self.opened = {}

    def broken(self) -> bool:
        """True when a queue's ring is malformed."""
        worker = self._worker
        return worker is not None and worker.broken != 0

    def status(self) -> dict[str, object]:
        """Bytes that no host reader took in time."""
        return {"dropped": self._port.dropped}
