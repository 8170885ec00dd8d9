"""Queues of every virtio device, quiet and with a driver that writes meanwhile; the serial port."""

from __future__ import annotations

import os
from contextlib import ExitStack
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from tests.fuzz.target import NativeTarget

if TYPE_CHECKING:
    from collections.abc import Callable

SECTORS = 512


def _queue(plant: str) -> Any:
    from tests.fuzz.drivers import planted
    from vmm._native.virtio.virtqueue import VirtQueue

    return {"": VirtQueue, "unchecked": planted.BlindQueue, "twice": planted.TwiceQueue}[plant]


def virtqueue(plant: str) -> Callable[..., None]:
    """The loop over rings alone."""
    from tests.fuzz.drivers import queues

    return partial(queues.run, make=_queue(plant))


def blk(plant: str, overlay: bool = False) -> Callable[..., None]:
    """A disk's requests; the plant takes its end away."""
    from tests.fuzz.drivers import blocks

    return partial(blocks.run, overlay=overlay, blind=bool(plant))


def rng(plant: str) -> Callable[..., None]:
    """The random number generator's queue."""
    from tests.fuzz.drivers import bytewise

    return partial(bytewise.run_rng, make=_queue(plant))


def console(plant: str) -> Callable[..., None]:
    """The console's two queues."""
    from tests.fuzz.drivers import bytewise

    return partial(bytewise.run_console, make=_queue(plant))


def uart(plant: str) -> Callable[..., None]:
    """The serial port's registers."""
    from tests.fuzz.drivers import bytewise, planted
    from vmm._native.console.uart import Uart

    return partial(bytewise.run_uart, make=planted.BlindUart if plant else Uart)


class Race:
    """A device whose threads run while its driver writes: a loop as NativeTarget wants it."""

    def __init__(self, device: Callable[[ExitStack, Any, Any], list], plant: str) -> None:
        self._device = device
        self._plant = plant

    def __call__(self, seed: int, first: int, count: int, progress: Any) -> None:
        """As NativeTarget's loop."""
        from tests.fuzz.drivers import racing
        from tests.fuzz.drivers.guest import Ram, rigs

        # Each queue has RAM of its own: that two write one byte, as a driver may want it, is no
        # race of ours. The last one's rings end where RAM does.
        rams = [Ram() for _ in range(3)]
        ram = SimpleNamespace(unhurt=lambda: all(each.unhurt() for each in rams))
        kind = _queue(self._plant)
        with ExitStack() as stack:
            sides = [
                rigs(each, [size], kind)[place]
                for each, size, place in zip(rams, (16, 64, 16), (0, 0, 1), strict=True)
            ]
            pairs = self._device(stack, sides, ram)
            for _, worker, _ in pairs:
                worker.start("fuzzed")
            try:
                racing.run(seed, first, count, progress, ram, pairs)
            finally:
                for _, worker, _ in pairs:
                    worker.stop()


def _eventfd(stack: ExitStack, flags: int = 0) -> int:
    fd = os.eventfd(0, flags)
    stack.callback(os.close, fd)
    return fd


def _disk(stack: ExitStack) -> int:
    fd = os.memfd_create("disk")
    stack.callback(os.close, fd)
    os.ftruncate(fd, SECTORS * 512)
    return fd


def racing_disks(engine: str, stack: ExitStack, sides: Any, ram: Any) -> list:
    """One disk with a queue for each rig."""
    from devices.virtio.block import worker_class
    from tests.fuzz.drivers.blocks import overlay_worker
    from vmm._native.disk.blkpump import BlkWorker

    factory: Any = {"preadv": BlkWorker, "overlay": overlay_worker, "uring": worker_class()}[engine]
    pairs = []
    for rig in sides:
        kick = _eventfd(stack)
        worker = factory(
            rig.queue, _disk(stack), SECTORS, False, False, b"serial", kick,
            _eventfd(stack, os.EFD_NONBLOCK), -1,
        )  # fmt: skip
        pairs.append((rig, worker, kick))
    return pairs


def racing_rng(stack: ExitStack, sides: Any, ram: Any) -> list:
    """A generator for each rig."""
    from vmm._native.virtio.rngpump import RngWorker

    pairs = []
    for rig in sides:
        kick = _eventfd(stack)
        call = _eventfd(stack, os.EFD_NONBLOCK)
        pairs.append((rig, RngWorker(rig.queue, kick, call, -1), kick))
    return pairs


def racing_console(stack: ExitStack, sides: Any, ram: Any) -> list:
    """A console over the first two rigs, whose host types all the time."""
    from vmm._native.console.byteport import BytePort
    from vmm._native.console.conpump import ConsoleWorker

    source, sink = os.open("/dev/zero", os.O_RDONLY), os.open(os.devnull, os.O_WRONLY)
    stack.callback(os.close, source)
    stack.callback(os.close, sink)
    port = BytePort(source, sink, -1)
    stack.callback(port.close)
    kicks = [_eventfd(stack) for _ in sides[:2]]
    calls = [_eventfd(stack, os.EFD_NONBLOCK) for _ in kicks]
    worker = ConsoleWorker(
        port, (sides[0].queue, kicks[0], calls[0]), (sides[1].queue, kicks[1], calls[1]), -1
    )
    port.start("port")
    return [(side, worker, kick) for side, kick in zip(sides, kicks, strict=False)]


def _race(name: str, device: Callable[[ExitStack, Any, Any], list], quick: int) -> NativeTarget:
    plants = ("twice",) if "blk" in name else ("unchecked",)
    return NativeTarget(name, partial(Race, device), quick, plants, racing=True)


TARGETS = (
    NativeTarget("virtqueue", virtqueue, 100_000),
    NativeTarget("blk", blk, 50_000),
    NativeTarget("blk-overlay", partial(blk, overlay=True), 50_000),
    NativeTarget("rng", rng, 50_000),
    NativeTarget("console", console, 50_000),
    NativeTarget("uart", uart, 100_000),
    _race("blk-racing", partial(racing_disks, "preadv"), 5_000),
    _race("blk-uring-racing", partial(racing_disks, "uring"), 3_000),
    _race("blk-overlay-racing", partial(racing_disks, "overlay"), 5_000),
    _race("rng-racing", racing_rng, 5_000),
    _race("console-racing", racing_console, 5_000),
)
