"""What the transport and a virtio device agree on (virtio 1.2, chapters 2 and 3)."""

from __future__ import annotations

from vmm.light.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from vmm._native.memory.guestmem import GuestMemory
    from vmm._native.virtio.virtqueue import VirtQueue
    from vmm._native.virtio.worker import Worker
    from vmm.light.state import Check

F_INDIRECT_DESC = 1 << 28
F_EVENT_IDX = 1 << 29
F_VERSION_1 = 1 << 32


class QueueConfig(Record):
    """A queue as the driver set it up: guest addresses, and eventfds borrowed by the device.

    ``kick_fd`` is written at a doorbell; ``call_fd`` raises the queue's interrupt, -1 without one.
    """

    __slots__ = ("call_fd", "desc_gpa", "device_gpa", "driver_gpa", "index", "kick_fd", "size")
    index: int
    size: int
    desc_gpa: int
    driver_gpa: int
    device_gpa: int
    kick_fd: int
    call_fd: int

    def __init__(
        self,
        index: int,
        size: int,
        desc_gpa: int,
        driver_gpa: int,
        device_gpa: int,
        kick_fd: int,
        call_fd: int,
    ) -> None:
        self._set(
            index=index,
            size=size,
            desc_gpa=desc_gpa,
            driver_gpa=driver_gpa,
            device_gpa=device_gpa,
            kick_fd=kick_fd,
            call_fd=call_fd,
        )

    def open(self, memory: GuestMemory, features: int) -> VirtQueue:
        """The native queue; ValueError when an area is misaligned or outside guest RAM."""
        from vmm._native.virtio.virtqueue import VirtQueue

        return VirtQueue(
            memory,
            self.size,
            self.desc_gpa,
            self.driver_gpa,
            self.device_gpa,
            event_idx=bool(features & F_EVENT_IDX),
            indirect=bool(features & F_INDIRECT_DESC),
        )


class VirtioDevice:
    """Base of the devices behind a transport.

    activate(), reset() and the register calls come from vCPU threads, one at a time: the lock of
    the transport holds them. close() and config changes come from the control thread. status(),
    activity() and broken() may be called by any thread without a lock: what they look at is
    replaced as a whole.
    """

    name: str
    device_type: int
    queue_sizes: Sequence[int]
    # Offered feature bits; the transport adds VERSION_1.
    features: int = 0
    pci_class: int = 0xFFFF00
    config_size: int = 0
    # True where firmware must reach the registers below 4 GiB.
    low_bar: bool = False
    # The queues in use, by their index; replaced as a whole.
    opened: Mapping[int, VirtQueue] = {}
    # Set by the transport: tells the driver that the configuration changed.
    config_changed: Callable[[], None] | None = None

    def read_config(self, offset: int, size: int) -> int:
        """Device configuration; ``offset`` + ``size`` is inside config_size."""
        return 0

    def write_config(self, offset: int, value: int, size: int) -> None:
        """A driver's write of device configuration; read-only unless a device says otherwise."""

    def activate(self, features: int, queues: Sequence[QueueConfig], config_call_fd: int) -> None:
        """Start working on the enabled queues.

        ValueError when one cannot be used, OSError when the host lacks something; reset() follows.
        """
        self.prepare(features, queues, config_call_fd)
        self.go_on()

    def prepare(self, features: int, queues: Sequence[QueueConfig], config_call_fd: int) -> None:
        """All of activate() but that nothing works yet: go_on() follows. Raises the same."""
        raise NotImplementedError(self.name)

    def workers(self) -> Sequence[tuple[str, Worker]]:
        """The threads that serve queues now, and what they are called."""
        return ()

    def quiesce(self) -> None:
        """Stop between two requests, all of them answered; nothing touches guest RAM then.

        Control thread, with the vCPUs standing still; idempotent. What rings meanwhile is heard
        after go_on().
        """
        for _, worker in self.workers():
            worker.pause()

    def go_on(self) -> None:
        """Work (again); idempotent. OSError when the host lacks a thread or a descriptor."""
        for name, worker in self.workers():
            worker.start(name)

    def positions(self) -> list[list[int]]:
        """Of each queue in use: index, next available, next used, and what was last signalled."""
        return [[index, *queue.positions()] for index, queue in self.opened.items()]

    def mark(self) -> object:
        """Another value after each request, and after what the host did to the device."""
        return self.positions()

    def state(self) -> dict[str, object]:
        """What the device keeps besides its queues; see vmm/light/state.py."""
        return {"version": 1}

    def state_fields(self) -> Mapping[str, Check]:
        """What the values of a state() must be."""
        return {}

    def take_state(self, found: dict[str, Any]) -> None:
        """A state() again, checked by state_fields(); the driver's features are there already."""

    def set_state(self, state: object) -> None:
        """take_state(), checked; StateError, and nothing changed."""
        from vmm.light.state import read_state

        self.take_state(read_state(self.name, state, self.state_fields()))

    def reset(self) -> None:
        """Stop working; when it returns no guest memory is in use. Idempotent."""

    def broken(self) -> bool:
        """True when a worker met a malformed ring and the device needs a reset."""
        return False

    def activity(self) -> int:
        """Requests served since the last reset; 0 for a device that does not count them."""
        return 0

    def status(self) -> dict[str, object]:
        """Facts for people: counters and the like."""
        return {}

    def close(self) -> None:
        """Let go of everything."""
        self.reset()
