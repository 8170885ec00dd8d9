"""VirtioDevice: a virtio device that is a Python class."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any

from devices.virtio.device import F_EVENT_IDX, F_INDIRECT_DESC
from devices.virtio.device import VirtioDevice as Base
from devices.virtio.pci import NOTIFY_MULTIPLIER, NOTIFY_SIZE, VirtioPciFunction
from vmm._native.kvm import bus
from vmm._native.virtio.chain import BrokenQueue, Chain, ChainQueue
from vmm.debug.caller import FAILED, Caller, fitting
from vmm.debug.device import Device, check_number
from vmm.debug.stop import STOP
from vmm.log.hub import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from devices.virtio.device import QueueConfig
    from vmm.machine import Machine

log = get_logger(__name__)

QUEUE_SIZE_MAX = 32768
TYPE_MAX = 0x3F
CONFIG_MAX = 0x2000
UNCLASSIFIED = 0xFFFF00


class Queue:
    """A queue that the driver switched on: an iterable of chains, each a request.

    ``chain.read(n)`` is what the driver sends, ``chain.write(data)`` the answer, ``chain.done()``
    gives the request back, at once or any time later. One iteration ends after as many chains as
    the queue holds; handle() is called again for what came meanwhile.
    """

    def __init__(self, native: ChainQueue, adapter: Adapter) -> None:
        self.index = native.index
        self.size = native.size
        self.native = native
        self._adapter = adapter
        self._left = 0
        # The last look found nothing.
        self._empty = False

    def refill(self) -> None:
        """A call of handle() begins."""
        self._left = self.size
        self._empty = False

    @property
    def unfinished(self) -> bool:
        """handle() took all it was allowed to, or all there was: what comes now is news."""
        return self._left == 0 or self._empty

    def pop(self) -> Chain | None:
        """The next chain, None without one. A malformed one breaks the device instead."""
        try:
            chain = self.native.take()
        except BrokenQueue as error:
            self._adapter.break_down(f"queue {self.index}: {error}")
            return None
        self._empty = chain is None
        return chain

    def __iter__(self) -> Iterator[Chain]:
        while self._left:
            chain = self.pop()
            if chain is None:
                return
            self._left -= 1
            yield chain

    def __repr__(self) -> str:
        return f"<queue {self.index} of {self._adapter.name}, {self.native.in_use} chains in use>"


class VirtioDevice(Device):
    """A virtio device of a guest: subclass it, and give the class or an object to Guest(devices=).

    ``device_type`` is virtio's number of it (virtio 1.2, chapter 5), ``queue_sizes`` powers of two,
    ``features`` the bits offered (VERSION_1, INDIRECT_DESC and EVENT_IDX come by themselves),
    ``config`` its configuration space. handle() runs on the thread that called run(), with the vCPU
    that rang the doorbell standing still; what it raises comes out of run(), and the driver is told
    that the device needs a reset. ``queues`` and ``driver_features`` are what the driver chose.
    """

    device_type: int = 0
    queue_sizes: Sequence[int] = ()
    features: int = 0
    config: bytes | bytearray = b""
    pci_class: int = UNCLASSIFIED
    # True where firmware must reach the registers below 4 GiB.
    low_bar: bool = False
    driver_features: int = 0
    _function: ScriptedVirtio | None = None
    _adapter: Adapter | None = None

    def handle(self, queue: Queue) -> Any:
        """The driver rang the doorbell of a queue; vmm.STOP makes run() return."""
        raise NotImplementedError(f"{type(self).__name__}.handle()")

    def read_config(self, offset: int, size: int) -> int:
        """Configuration space; ``offset`` + ``size`` is inside it."""
        return int.from_bytes(self.config[offset : offset + size], "little")

    def write_config(self, offset: int, value: int, size: int) -> None:
        """A driver's write of configuration space; read-only unless a device says otherwise."""

    def config_changed(self) -> None:
        """Tell the driver that the configuration is another one."""
        if self._function is None:
            raise RuntimeError(f"{self!r} belongs to no guest yet")
        self._function.config_interrupt()

    @property
    def queues(self) -> dict[int, Queue]:
        """The queues that the driver switched on, by index; none before and after it drives."""
        return {} if self._adapter is None else self._adapter.queues

    def _attach(self, machine: Machine, slot: int, caller: Caller) -> None:
        self._check()
        adapter = Adapter(self, machine, caller)
        vectors = machine.vm.irq.msi_vectors(len(self.queue_sizes) + 1)
        function = ScriptedVirtio(adapter, vectors, machine.vm.doorbells)
        machine.virtio.append(function)
        machine.bar_windows.place_emulated(function.bar)
        machine.pci.add(slot, function)
        self._adapter, self._function = adapter, function
        function.enable()

    def _check(self) -> None:
        check_number(self, "features", self.features, 64)
        check_number(self, "pci_class", self.pci_class, 24)
        if not isinstance(self.device_type, int) or not 0 < self.device_type <= TYPE_MAX:
            raise ValueError(
                f"{self.name}: device_type={self.device_type!r}: a number from 1 to {TYPE_MAX}"
            )
        sizes = tuple(self.queue_sizes)
        if not 0 < len(sizes) <= NOTIFY_SIZE // NOTIFY_MULTIPLIER:
            raise ValueError(f"{self.name}: queue_sizes={sizes}: one queue at least is needed")
        for size in sizes:
            if not isinstance(size, int) or not 0 < size <= QUEUE_SIZE_MAX or size & (size - 1):
                raise ValueError(
                    f"{self.name}: a queue of {size!r}: a power of two up to {QUEUE_SIZE_MAX}"
                )
        if len(self.config) > CONFIG_MAX:
            raise ValueError(
                f"{self.name}: config of {len(self.config)} bytes: at most {CONFIG_MAX}"
            )


class ScriptedVirtio(VirtioPciFunction):
    """The transport of a scripted device."""

    def config_interrupt(self) -> None:
        """As the base, without the lock: who calls drives the guest, and a vCPU that holds the
        lock may wait for just this thread.
        """
        self.common.generation = self.common.generation + 1 & 0xFF
        if self.active:
            self._raise_config()


class Adapter(Base):
    """What the transport sees of a VirtioDevice. See the base for who calls.

    Queues have no doorbells in the kernel: ringing one is an exit, which is served on the spot.
    ``queues`` is replaced as a whole.
    """

    doorbells = False

    def __init__(self, device: VirtioDevice, machine: Machine, caller: Caller) -> None:
        self.name = device.name
        self.device = device
        self.device_type = device.device_type
        self.queue_sizes = tuple(device.queue_sizes)
        self.features = device.features | F_INDIRECT_DESC | F_EVENT_IDX
        self.pci_class = device.pci_class
        self.low_bar = device.low_bar
        self.config_size = len(device.config)
        self.queues: dict[int, Queue] = {}
        self._memory = machine.memory
        self._caller = caller
        self._broken = False
        self._config_call_fd = -1
        self._requests = 0

    def read_config(self, offset: int, size: int) -> int:
        """From the script; ones when it fails."""
        found = self._caller.run(bus.current_vcpu(), self._config_value, offset, size)
        return (1 << 8 * size) - 1 if found is FAILED else int(found)

    def _config_value(self, offset: int, size: int) -> int:
        found = self.device.read_config(offset, size)
        return fitting(found, size, f"{self.name}.read_config()")

    def write_config(self, offset: int, value: int, size: int) -> None:
        """To the script."""
        self._caller.run(bus.current_vcpu(), self.device.write_config, offset, value, size)

    def prepare(self, features: int, queues: Sequence[QueueConfig], config_call_fd: int) -> None:
        """Open the queues."""
        self._config_call_fd = config_call_fd
        self.device.driver_features = features
        opened = [ChainQueue(q.open(self._memory, features), q.index, q.call_fd) for q in queues]
        self.queues = {native.index: Queue(native, self) for native in opened}

    def notified(self, index: int) -> None:
        """The driver rang the doorbell of a queue."""
        queue = self.queues.get(index)
        if queue is None or not queue.native.alive or self._broken:
            return
        vcpu = bus.current_vcpu()
        self._requests += 1
        found = self._caller.run(vcpu, self._handle, vcpu, queue)
        if found is FAILED:
            self.break_down("its script failed")
            return
        if found is STOP:
            self._caller.stop(vcpu, self.device)
        # Chains that a script leaves where they are wait for the next doorbell.
        if queue.native.rearm() and queue.unfinished:
            self._caller.later(partial(self.notified, index))

    def _handle(self, vcpu: int, queue: Queue) -> Any:
        if vcpu >= 0:
            self.device.cpu = self._caller.cpu(vcpu)
        queue.refill()
        return self.device.handle(queue)

    def break_down(self, why: str) -> None:
        """The driver is told that only a reset helps (virtio 1.2, 2.1.2)."""
        log.warning(f"{self.name} needs a reset: {why}")
        self._broken = True
        if self._config_call_fd >= 0:
            os.eventfd_write(self._config_call_fd, 1)

    def broken(self) -> bool:
        """True after a malformed chain, or when the script raised."""
        return self._broken

    def reset(self) -> None:
        """The driver resets it: chains in use become nothing."""
        used = bool(self.queues)
        for queue in self.queues.values():
            queue.native.stop()
        self.queues = {}
        self._broken = False
        self._config_call_fd = -1
        self.device.driver_features = 0
        if used:
            self._caller.run(bus.current_vcpu(), self.device.reset)

    def activity(self) -> int:
        """How often a doorbell rang."""
        return self._requests

    def close(self) -> None:
        """The guest is closed; the script hears nothing of it."""
        for queue in self.queues.values():
            queue.native.stop()
        self.queues = {}
