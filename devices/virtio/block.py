"""virtio-blk: a disk image as a block device (virtio 1.2, 5.2)."""

from __future__ import annotations

import os
import struct

from devices.virtio.device import F_EVENT_IDX, F_INDIRECT_DESC, VirtioDevice
from vmm._native.disk.blkpump import BlkWorker, Flushed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from devices.virtio.device import QueueConfig
    from vmm._native.disk.overlay import Overlay
    from vmm._native.memory.guestmem import GuestMemory
    from vmm._native.virtio.worker import Worker
    from vmm.host.disk import Disk
    from vmm.light.state import Check

F_SEG_MAX = 1 << 2
F_RO = 1 << 5
F_BLK_SIZE = 1 << 6
F_FLUSH = 1 << 9
F_TOPOLOGY = 1 << 10
F_CONFIG_WCE = 1 << 11
F_MQ = 1 << 12
F_DISCARD = 1 << 13
F_WRITE_ZEROES = 1 << 14
QUEUE_SIZE = 128
CONFIG = struct.Struct("<QIIHBBIBBHIBxHIIIIIB3x")
WRITEBACK = 0x20
MAX_SECTORS = 0xFFFFFFFF


def worker_class() -> type[BlkWorker]:
    """io_uring where it is built in and this kernel lets us use it, else preadv."""
    try:
        from vmm._native.disk import uring
    except ImportError:
        return BlkWorker
    return uring.UringBlkWorker if uring.supported() else BlkWorker


def overlay_worker(overlay: Overlay) -> Callable[..., BlkWorker]:
    """Workers over an overlay; imported only where there is one."""
    from vmm._native.disk.overlaypump import OverlayBlkWorker

    def make(*handles: Any) -> BlkWorker:
        worker = OverlayBlkWorker(*handles)
        worker.overlay = overlay
        return worker

    return make


class Block(VirtioDevice):
    """A disk with ``queues`` request queues, each served by a native thread.

    ``_workers`` is replaced as a whole, so that any thread may look at it.
    """

    device_type = 2
    # Mass storage, other.
    pci_class = 0x018000
    low_bar = True
    config_size = CONFIG.size

    def __init__(self, name: str, memory: GuestMemory, disk: Disk, queues: int) -> None:
        self.name = name
        self.disk = disk
        self.queue_sizes = (QUEUE_SIZE,) * queues
        self._memory = memory
        self._workers: tuple[BlkWorker, ...] = ()
        self._writeback = 1
        self.features = F_SEG_MAX | F_BLK_SIZE | F_FLUSH | F_TOPOLOGY | F_CONFIG_WCE
        self.features |= F_INDIRECT_DESC | F_EVENT_IDX
        if queues > 1:
            self.features |= F_MQ
        if disk.read_only:
            self.features |= F_RO
        else:
            self.features |= F_WRITE_ZEROES
        if disk.can_discard:
            self.features |= F_DISCARD
        self._accepted = 0
        self._config = self._describe(queues)

    def _describe(self, queues: int) -> bytearray:
        disk = self.disk
        block = disk.logical_block
        writable = not disk.read_only
        discards = disk.can_discard
        return bytearray(
            CONFIG.pack(
                disk.capacity * 512 // block * block // 512,
                0,
                QUEUE_SIZE - 2,
                0, 0, 0,
                block,
                (disk.physical_block // block).bit_length() - 1,
                0,
                disk.min_io // block,
                disk.opt_io // block,
                1,
                queues,
                MAX_SECTORS if discards else 0,
                1 if discards else 0,
                block // 512,
                MAX_SECTORS if writable else 0,
                1 if writable else 0,
                1 if writable else 0,
            )
        )  # fmt: skip

    def read_config(self, offset: int, size: int) -> int:
        """The 60 bytes of struct virtio_blk_config."""
        return int.from_bytes(self._config[offset : offset + size], "little")

    def write_config(self, offset: int, value: int, size: int) -> None:
        """Only the write cache mode can be changed, when CONFIG_WCE was accepted (5.2.5.2)."""
        if offset != WRITEBACK or size != 1 or not self._accepted & F_CONFIG_WCE:
            return
        self._set_writeback(value & 1)

    def _set_writeback(self, value: int) -> None:
        self._writeback = value
        self._config[WRITEBACK] = value
        for worker in self._workers:
            worker.writeback = value

    def prepare(self, features: int, queues: Sequence[QueueConfig], config_call_fd: int) -> None:
        """Make a worker for each queue."""
        overlay = self.disk.overlay
        kind = worker_class() if overlay is None else overlay_worker(overlay)
        self._accepted = features
        opened = [queue.open(self._memory, features) for queue in queues]
        disk = self.disk
        disk.flushed = disk.flushed or Flushed()
        workers = []
        # Who looks for work takes the only processor from the guest that would make some.
        alone = len(os.sched_getaffinity(0)) == 1
        for config, queue in zip(queues, opened, strict=True):
            worker = kind(
                queue, disk.fd, disk.capacity, disk.read_only, disk.is_block_device, disk.serial,
                config.kick_fd, config.call_fd, config_call_fd,
            )  # fmt: skip
            # A driver that knows of neither FLUSH nor the cache mode never flushes (5.2.6.2).
            worker.writeback = self._writeback if features & (F_FLUSH | F_CONFIG_WCE) else 0
            worker.flushed = disk.flushed
            worker.can_discard = disk.can_discard
            worker.polling = not alone
            if disk.alignment is not None:
                worker.set_direct(*disk.alignment)
            if disk.limits is not None:
                disk.limits.govern(worker)
            workers.append(worker)
        self._workers = tuple(workers)
        self.opened = {config.index: queue for config, queue in zip(queues, opened, strict=True)}

    def workers(self) -> Sequence[tuple[str, Worker]]:
        """One a queue."""
        return [(f"{self.name}-q{index}", worker) for index, worker in enumerate(self._workers)]

    def state(self) -> dict[str, object]:
        """The write cache mode, and which disk it was."""
        return {"version": 1, "capacity": self.disk.capacity, "writeback": self._writeback}

    def state_fields(self) -> Mapping[str, Check]:
        """It must have been of a disk of this size."""
        from vmm.light.state import int_in

        capacity = self.disk.capacity
        return {"capacity": int_in(capacity, capacity), "writeback": int_in(0, 1)}

    def take_state(self, found: dict[str, Any]) -> None:
        """A state() again."""
        self._writeback = found["writeback"]
        self._config[WRITEBACK] = self._writeback
        flushes = self._accepted & (F_FLUSH | F_CONFIG_WCE)
        for worker in self._workers:
            worker.writeback = self._writeback if flushes else 0

    def reset(self) -> None:
        """Stop the workers; requests in flight are finished."""
        for worker in self._workers:
            worker.stop()
        self._workers = ()
        self.opened = {}
        self._accepted = 0
        self._set_writeback(1)

    def broken(self) -> bool:
        """True when a queue's ring is malformed."""
        return any(worker.broken for worker in self._workers)

    def activity(self) -> int:
        """Requests of all queues since the last reset."""
        return sum([w.reads + w.writes + w.flushes + w.discards for w in self._workers])

    def status(self) -> dict[str, object]:
        """The image and the workers' counters."""
        totals: dict[str, int] = {}
        workers = self._workers
        for worker in workers:
            for key, value in worker.counters().items():
                totals[key] = totals.get(key, 0) + value
        engine = workers[0].engine if workers else None
        serial = self.disk.serial.decode("ascii")
        facts = {"disk": self.disk.path, "serial": serial, "queues": len(self.queue_sizes)}
        failed = bool(self.disk.flushed and self.disk.flushed.failed)
        return {**facts, "engine": engine, **totals, "flush_failed": failed}
