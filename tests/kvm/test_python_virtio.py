"""Virtio devices that are Python classes, driven by tiny guests: good and hostile ones."""

from __future__ import annotations

import struct

import pytest

import vmm
from tests.support.guest_asm import Program
from tests.support.scripted_devices import SECONDS, SIZE, Upper, bar_of, pci_slot, run
from tests.support.tiny_guest import results, tiny_guest
from tests.support.two_vcpus import AP_CODE, QUEUE_GPA, RealMode, activate, wake_others
from tests.support.virtq_driver import DriverQueue
from vmm import layout

DATA = 0x320000
NOTIFY, DEVICE_CONFIG, STATUS = 0x6000, 0x4000, 0x14
NEEDS_RESET = 0x40


class Rig:
    """A guest with a scripted virtio device, and the driver's side of its first queue."""

    def __init__(self, folder, device=None, **settings) -> None:
        self.device = device or Upper()
        self.guest = tiny_guest(folder, b"\xf4" * 4096, devices=[self.device], **settings)
        self.bar = bar_of(self.device)
        self.memory = self.guest.machine.memory
        self.ring = DriverQueue(self.memory, QUEUE_GPA, SIZE)
        # activate() has the three areas a page apart.
        self.ring.driver_gpa, self.ring.device_gpa = QUEUE_GPA + 0x1000, QUEUE_GPA + 0x2000
        self.program = activate(Program(), self.bar, 2)

    def ask(self, text: bytes, room: int = 16) -> None:
        self.memory.write(DATA, text)
        self.ring.add([(DATA, len(text), False), (DATA + 0x100, room, True)])

    def kick(self, queue: int = 0) -> Rig:
        self.program.write(self.bar + NOTIFY + 4 * queue, queue, 2)
        return self

    def run(self) -> vmm.Stop:
        return run(self.guest, self.program)

    def status(self) -> int:
        return self.device._function.common.read(STATUS, 1)

    def __enter__(self) -> Rig:
        return self

    def __exit__(self, *error: object) -> None:
        self.guest.close()


@pytest.mark.parametrize("cpus", [1, 2])
def test_requests_are_served_when_the_doorbell_rings(tmp_path, cpus):
    with Rig(tmp_path, cpu_count=cpus) as rig:
        rig.ask(b"words")
        config = rig.program.read(rig.bar + DEVICE_CONFIG, 4)
        rig.kick().program.wait16(rig.ring.device_gpa + 2, 1)
        assert rig.run().kind == "ended"
        assert rig.device.served == [(0, b"words")]
        assert rig.ring.take_used() == (0, 5)
        assert rig.memory.read(DATA + 0x100, 6) == b"WORDS\0"
        assert results(rig.guest, rig.program)[config] == int.from_bytes(b"conf", "little")
        assert set(rig.device.queues) == {0, 1}
        assert rig.device.driver_features == 1 << 32


def test_an_answer_is_cut_to_the_room_there_is(tmp_path):
    with Rig(tmp_path) as rig:
        rig.ask(b"too long for it", 4)
        rig.kick()
        assert rig.run().kind == "ended"
        assert rig.ring.take_used() == (0, 4)
        assert rig.memory.read(DATA + 0x100, 5) == b"TOO \0"


def test_a_failing_script_breaks_the_device_and_not_the_guest(tmp_path):
    with Rig(tmp_path) as rig:
        rig.device.failing = True
        rig.ask(b"x")
        rig.kick().kick()
        status = rig.program.read(rig.bar + STATUS, 1)
        rig.program.write(rig.bar + STATUS, 0, 1)
        cleared = rig.program.read(rig.bar + STATUS, 1)
        with pytest.raises(OSError, match="out of letters"):
            rig.run()
        assert rig.guest.run(seconds=SECONDS).kind == "ended"
        found = results(rig.guest, rig.program)
        assert [found[n] for n in (status, cleared)] == [0xF | NEEDS_RESET, 0]
        assert rig.device.resets == 2


def test_a_device_stops_the_run(tmp_path):
    with Rig(tmp_path) as rig:
        rig.device.answer = vmm.STOP
        rig.ask(b"x")
        rig.kick()
        stop = rig.run()
        assert (stop.kind, stop.where) == ("hook", rig.device)
        assert rig.guest.run(seconds=SECONDS).kind == "ended"


def outside(rig) -> None:
    rig.ring.add([(1 << 40, 16, False)])


def endless(rig) -> None:
    rig.ring.descriptor(0, DATA, 16, 1, 0)
    rig.ring.publish(0)


def far_ahead(rig) -> None:
    rig.ring.set_avail_idx(SIZE + 1)


def no_descriptor(rig) -> None:
    rig.ring.publish(SIZE)


def misordered(rig) -> None:
    rig.ring.add([(DATA, 16, True), (DATA, 16, False)])


def all_memory_often(rig) -> None:
    rig.ring.add([(0, 15 << 20, False)] * SIZE)


@pytest.mark.parametrize(
    "spoil", [outside, endless, far_ahead, no_descriptor, misordered, all_memory_often]
)
def test_a_hostile_ring_never_reaches_the_script(tmp_path, spoil):
    with Rig(tmp_path) as rig:
        spoil(rig)
        rig.kick().kick()
        assert rig.run().kind == "ended"
        assert rig.device.served == []
        assert rig.status() == 0xF | NEEDS_RESET


def test_queues_outside_of_ram_are_refused(tmp_path):
    with Rig(tmp_path) as rig:
        rig.program = activate(Program(), rig.bar, gpa=0x7FFF0000)
        assert rig.kick().run().kind == "ended"
        assert rig.device.served == []
        assert rig.status() & NEEDS_RESET
        assert rig.device.queues == {}


def test_chains_outlive_a_reset_and_the_guest_as_nothing(tmp_path):
    class Keeper(Upper):
        def handle(self, queue):
            self.kept = list(queue)

    with Rig(tmp_path, Keeper()) as rig:
        for _ in range(3):
            rig.ask(b"kept")
        rig.kick()
        rig.program.write(rig.bar + STATUS, 0, 1)
        assert rig.run().kind == "ended"
        first, second, third = rig.device.kept
        assert (first.read(), first.writable, first.write(b"late")) == (b"", 0, 0)
        first.done()
        with pytest.raises(RuntimeError, match="given back already"):
            first.done()
        assert rig.ring.used_idx() == 0
        assert rig.memory.read(DATA + 0x100, 4) == bytes(4)
    second.done()
    assert (third.read(), third.readable, third.write(b"x")) == (b"", 0, 0)


def test_an_answer_may_come_later(tmp_path):
    class Late(Upper):
        def handle(self, queue):
            self.kept = list(queue)
            return vmm.STOP

    with Rig(tmp_path, Late()) as rig:
        rig.ask(b"late")
        rig.kick().program.wait16(rig.ring.device_gpa + 2, 1)
        assert rig.run().kind == "hook"
        (chain,) = rig.device.kept
        assert (chain.readable, chain.writable, chain.read(2), chain.read(9)) == (
            4, 16, b"la", b"te",
        )  # fmt: skip
        with pytest.raises(ValueError, match="16 bytes of room"):
            chain.done(17)
        assert (chain.write(b"a"), chain.write(memoryview(b"bc")), chain.written) == (1, 2, 3)
        chain.done(2)
        assert rig.guest.run(seconds=SECONDS).kind == "ended"
        assert rig.ring.take_used() == (0, 2)
        assert rig.memory.read(DATA + 0x100, 4) == b"abc\0"


def test_the_driver_hears_of_a_new_configuration(tmp_path):
    with Rig(tmp_path) as rig:
        generation = rig.program.read(rig.bar + STATUS + 1, 1)

        def write(cpu, port, value, size):
            rig.device.config = b"new one"[:6]
            rig.device.config_changed()

        rig.guest.on_port(0x500, 1, write=write)
        rig.program.out(0x500, 1)
        second = rig.program.read(rig.bar + STATUS + 1, 1)
        word = rig.program.read(rig.bar + DEVICE_CONFIG, 2)
        assert rig.run().kind == "ended"
        found = results(rig.guest, rig.program)
        assert found[second] == found[generation] + 1
        assert found[word] == int.from_bytes(b"ne", "little")


def test_two_vcpus_ring_at_once(tmp_path):
    """One rings without an end, the other one resets the device again and again."""
    with Rig(tmp_path, cpu_count=2) as rig:
        slot = pci_slot(rig.guest, rig.device)
        other = RealMode()
        # The window into BAR 0 (virtio 1.2, 4.1.4.9): a doorbell from real mode.
        window = rig.device._function._window
        other.config(slot, window + 8, NOTIFY).config(slot, window + 12, 2)
        loop = bytes(RealMode().config(slot, window + 16, 0, 2).code[1:])
        code = bytes(other.code) + loop + b"\xe9" + struct.pack("<h", -len(loop) - 3)
        rig.memory.write(AP_CODE, code)
        program = wake_others(Program())
        for _ in range(20):
            activate(program, rig.bar, 2)
            # Long enough for the other vCPU to get a processor of a busy machine now and then.
            program.wait_ticks(layout.PM_TIMER_PORT, 60000)
            program.write(rig.bar + STATUS, 0, 1)
        rig.program = program
        for n in range(SIZE // 2):
            rig.ask(b"%d" % n)
        assert rig.run().kind == "ended"
        assert rig.device.resets == 21
        assert rig.device.served
