"""The console's and the random number generator's threads, by a driver's rings."""

from __future__ import annotations

import os
import select
import time

import pytest

from tests.support.speed import patience
from tests.support.virtq_driver import DriverQueue
from vmm._native.console.byteport import BytePort
from vmm._native.console.conpump import ConsoleWorker
from vmm._native.memory.guestmem import GuestMemory
from vmm._native.virtio.rngpump import RngWorker
from vmm._native.virtio.virtqueue import VirtQueue

SIZE = 8
DATA = 0x20000


class Queue:
    """A driver's queue with its doorbell and its interrupt."""

    def __init__(self, memory: GuestMemory, base: int) -> None:
        self.driver = DriverQueue(memory, base, SIZE)
        self.queue = VirtQueue(memory, SIZE, *self.driver.areas())
        self.kick = os.eventfd(0)
        self.call = os.eventfd(0)

    @property
    def handles(self) -> tuple[VirtQueue, int, int]:
        return self.queue, self.kick, self.call

    def ring(self) -> None:
        os.eventfd_write(self.kick, 1)

    def used(self) -> tuple[int, int]:
        poll = select.poll()
        poll.register(self.call, select.POLLIN)
        deadline = time.monotonic() + patience(5)
        while (found := self.driver.take_used()) is None:
            assert time.monotonic() < deadline, "no completion"
            if poll.poll(100):
                os.eventfd_read(self.call)
        return found

    def close(self) -> None:
        os.close(self.kick)
        os.close(self.call)


@pytest.fixture
def memory():
    ram = GuestMemory([(0, 1 << 20)])
    yield ram
    ram.close()


class Console:
    def __init__(self, memory: GuestMemory) -> None:
        self.reader, writer = os.pipe()
        self.writer = writer
        self.port = BytePort(-1, writer)
        self.port.start("console-test")
        self.receive = Queue(memory, 0x1000)
        self.transmit = Queue(memory, 0x3000)
        self.config = os.eventfd(0, os.EFD_NONBLOCK)
        self.worker = ConsoleWorker(
            self.port, self.receive.handles, self.transmit.handles, self.config
        )
        self.worker.start("console-test")

    def close(self) -> None:
        self.worker.stop()
        self.port.close()
        self.receive.close()
        self.transmit.close()
        for fd in (self.reader, self.writer, self.config):
            os.close(fd)
        del self.worker, self.receive.queue, self.transmit.queue


@pytest.fixture
def console(memory):
    running = Console(memory)
    yield running
    running.close()


def test_a_stopped_worker_is_not_started_again(console):
    console.worker.stop()
    with pytest.raises(ValueError, match="console-test: a console's worker that was stopped"):
        console.worker.start("console-test")


def test_output_reaches_the_host(console, memory):
    memory.write(DATA, b"hello, host")
    console.transmit.driver.add([(DATA, 5, False), (DATA + 5, 6, False)])
    console.transmit.ring()
    console.transmit.used()
    assert os.read(console.reader, 64) == b"hello, host"


def test_input_reaches_the_guest_in_the_buffers_it_gave(console, memory):
    for n in range(3):
        console.receive.driver.add([(DATA + 64 * n, 4, True)])
    console.receive.ring()
    console.port.host_write(b"abcdefgh")
    first, second = console.receive.used(), console.receive.used()
    assert first[1] + second[1] == 8
    assert memory.read(DATA, 4) == b"abcd"
    assert memory.read(DATA + 64, 4) == b"efgh"


def test_input_waits_for_buffers(console, memory):
    console.port.host_write(b"early")
    time.sleep(0.05)
    console.receive.driver.add([(DATA, 64, True)])
    console.receive.ring()
    assert console.receive.used()[1] == 5
    assert memory.read(DATA, 5) == b"early"


def test_a_lying_ring_is_told(console):
    console.transmit.driver.add([(1 << 40, 8, False)])
    console.transmit.ring()
    deadline = time.monotonic() + patience(5)
    while not console.worker.broken and time.monotonic() < deadline:
        time.sleep(0.01)
    assert console.worker.broken
    assert os.eventfd_read(console.config)


def test_random_numbers(memory):
    queue = Queue(memory, 0x1000)
    worker = RngWorker(*queue.handles, -1)
    worker.start("rng-test")
    queue.driver.add([(DATA, 4096, True), (DATA + 8192, 100, True)])
    queue.ring()
    assert queue.used()[1] == 4196
    data = memory.read(DATA, 4096)
    assert len(set(data)) > 200
    assert any(memory.read(DATA + 8192, 100))
    worker.stop()
    queue.close()
    del worker, queue
