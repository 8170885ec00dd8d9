from __future__ import annotations

import threading

import pytest

from vmm._native.kvm import bus as native_bus
from vmm._native.kvm.bus import CONTINUE, ERROR, Bus, current_vcpu
from vmm._native.kvm.hooktarget import HookTarget
from vmm._native.ports.postport import PostPort
from vmm._native.virtio.registers import VirtioRegisters


class Register:
    def __init__(self, value=0):
        self.value = value
        self.seen = []

    def read(self, offset, size):
        self.seen.append(("r", offset, size))
        return self.value & ((1 << 8 * size) - 1)

    def write(self, offset, value, size):
        self.seen.append(("w", offset, value, size))
        self.value = value
        return native_bus.RESET if value == 0xFE else None


@pytest.fixture
def bus():
    return Bus("ports")


def test_undecoded_reads_are_ones_and_writes_vanish(bus):
    assert bus.read(0x100, 1) == 0xFF
    assert bus.read(0x100, 4) == 0xFFFFFFFF
    assert bus.write(0x100, 5, 2) == native_bus.CONTINUE


def test_accesses_reach_the_device_with_its_offset(bus):
    device = Register(0x1122334455667788)
    bus.attach(0x3F8, 8, device, "com1")
    assert bus.read(0x3FA, 2) == 0x7788
    assert bus.write(0x3FF, 0x55, 1) == 0
    assert device.seen == [("r", 2, 2), ("w", 7, 0x55, 1)]


def test_access_across_the_end_is_nobodys(bus):
    device = Register()
    bus.attach(0x3F8, 8, device, "com1")
    assert bus.read(0x3FF, 2) == 0xFFFF
    assert bus.read(0x3F7, 2) == 0xFFFF
    assert device.seen == []


def test_outcome_comes_back(bus):
    bus.attach(0x64, 1, Register(), "i8042")
    assert bus.write(0x64, 0xFE, 1) == native_bus.RESET


def test_overlap_names_both(bus):
    bus.attach(0x60, 8, Register(), "first")
    with pytest.raises(ValueError, match="second.*overlaps first"):
        bus.attach(0x67, 1, Register(), "second")
    bus.attach(0x68, 1, Register(), "third")


def test_move_and_rollback(bus):
    device = Register(7)
    other = Register(9)
    bus.attach(0x1000, 16, device, "a")
    bus.attach(0x2000, 16, other, "b")
    bus.move(0x1000, 0x3000)
    assert bus.read(0x1000, 1) == 0xFF
    assert bus.read(0x3000, 1) == 7
    with pytest.raises(ValueError, match="overlaps b"):
        bus.move(0x3000, 0x2008)
    assert bus.read(0x3000, 1) == 7
    bus.detach(0x3000)
    assert bus.read(0x3000, 1) == 0xFF
    with pytest.raises(KeyError):
        bus.detach(0x3000)


def test_many_ranges_stay_sorted(bus):
    order = [(n * 7919) % 64 for n in range(64)]
    for n in order:
        bus.attach(0x1000 * n, 8, Register(n), f"d{n}")
    for n in range(64):
        assert bus.read(0x1000 * n, 1) == n
    for n in order[:32]:
        bus.detach(0x1000 * n)
    for n in range(64):
        assert bus.read(0x1000 * n, 1) == (0xFF if n in order[:32] else n)


def test_a_raising_device_is_told_once(bus):
    class Broken:
        def read(self, offset, size):
            raise RuntimeError("no luck")

        def write(self, offset, value, size):
            return None

    bus.attach(0, 1, Broken(), "broken")
    with pytest.raises(RuntimeError, match="no luck"):
        bus.read(0, 1)
    assert bus.error is None


def test_a_value_too_wide_for_64_bits_is_an_error(bus):

    class Wide:
        def read(self, offset, size):
            return 1 << 64

        def write(self, offset, value, size):
            return None

    bus.attach(0x100, 8, Wide(), "too wide")
    with pytest.raises(OverflowError):
        bus.read(0x100, 8)


@pytest.mark.parametrize("size", [0, 3, 5, 16])
def test_odd_sizes_are_refused(bus, size):
    with pytest.raises(ValueError):
        bus.read(0, size)


class Recorder:
    """A Python device that remembers how it was accessed."""

    def __init__(self):
        self.seen = []

    def read(self, offset, size):
        self.seen.append(("read", offset, size))
        return 0x5A

    def write(self, offset, value, size):
        self.seen.append(("write", offset, value, size))


def test_virtio_registers_of_each_request_are_native():
    device = Recorder()
    registers = VirtioRegisters(device, 2)
    bus = Bus("mmio")
    bus.attach(0x1000, 0x100, registers, "virtio")
    bus.write(0x1016, 1, 2)
    assert registers.selected == 1
    assert (bus.read(0x1016, 2), bus.read(0x101E, 2)) == (1, 1)
    registers.selected = 2
    assert (bus.read(0x1016, 2), bus.read(0x101E, 2)) == (2, 0)  # no such queue
    assert device.seen == []
    assert bus.read(0x1014, 4) == 0x5A
    bus.write(0x101E, 7, 2)
    bus.write(0x1016, 7, 1)
    assert device.seen == [("read", 0x14, 4), ("write", 0x1E, 7, 2), ("write", 0x16, 7, 1)]
    assert registers.selected == 2


def test_what_covers_a_range_comes_first_and_goes_again():
    bus = Bus("test")
    bus.attach(0x100, 8, Register(1), "device")
    bus.cover(0x102, 2, Register(2), "hook")
    bus.cover(0x200, 4, Register(3), "alone")
    assert [bus.read(0x100 + n, 1) for n in range(5)] == [1, 1, 2, 2, 1]
    # Not wholly inside: the device's.
    assert bus.read(0x101, 2) == 1
    assert bus.read(0x200, 4) == 3
    with pytest.raises(ValueError, match=r"more at \[0x103, 0x105\) overlaps hook at \[0x102"):
        bus.cover(0x103, 2, Register(4), "more")
    bus.uncover(0x102)
    assert bus.read(0x102, 1) == 1
    with pytest.raises(KeyError):
        bus.uncover(0x102)
    assert bus.ranges() == [(0x100, 8, "device")]


def test_a_hook_sees_what_a_watched_device_answers_and_may_change_it():
    bus, seen = Bus("test"), []
    device = Register(0x11)
    bus.attach(0x100, 8, device, "device")

    def hook(vcpu, address, value, size, is_write):
        seen.append((vcpu, address, value, size, is_write))
        return value + 1, CONTINUE

    target = HookTarget(hook, 0x100, bus, True, 0x105)
    bus.cover(0x100, 8, target, "hook")
    assert bus.read(0x103, 1) == 0x12
    assert bus.write(0x102, 7, 1) == CONTINUE
    assert device.seen[-1] == ("w", 2, 8, 1)
    device.value = 0x11
    assert bus.read(0x105, 1) == 0x11
    assert seen == [(-1, 0x103, 0x11, 1, False), (-1, 0x102, 7, 1, True)]
    target.enabled = False
    assert bus.read(0x103, 1) == 0x11
    assert target.hits == 2


@pytest.mark.parametrize("answer", [None, (1,), ("x", 0), (1 << 70, 0), (1, None)])
def test_a_hook_that_gives_no_pair_is_an_error_of_the_bus(answer):
    bus = Bus("test")
    bus.cover(0, 1, HookTarget(lambda *_: answer), "hook")
    assert bus.write(0, 1, 1) == ERROR


def test_no_vcpu_runs_on_a_script_s_thread():
    assert current_vcpu() == -1


def test_what_was_touched_is_known():
    class Device:
        def read(self, offset, size):
            return 0

        def write(self, offset, value, size): ...

    bus = Bus("ports")
    one, two, post = Device(), Device(), PostPort()
    for start, device in ((0x10, one), (0x20, two), (0x80, post)):
        bus.attach(start, 4, device, f"at {start:#x}")
    assert [(start, device) for start, _, device in bus.devices()] == [
        (0x10, one), (0x20, two), (0x80, post),
    ]  # fmt: skip
    assert bus.touched() == []
    bus.read(0x21, 1)
    bus.read(0x30, 1)
    bus.read(0x22, 4)  # ends outside
    assert bus.touched() == [two]
    bus.write(0x80, 1, 1)
    changes = bus.changes
    bus.move(0x20, 0x40)
    assert bus.changes > changes
    assert set(map(id, bus.touched())) == {id(two), id(post)}
    bus.clear_touched()
    assert bus.touched() == []
    bus.write(0x40, 1, 1)
    assert bus.touched() == [two]


def test_look_ups_while_ranges_come_go_and_move(bus):
    """Readers never miss what stands still, and old tables go."""
    register = VirtioRegisters(Recorder(), 1)
    bus.attach(0x5000, 0x100, register, "still")
    bus.attach(0x1000, 0x100, VirtioRegisters(Recorder(), 1), "moving")
    done, missed, looked = threading.Event(), [], [0, 0]

    def look(who: int) -> None:
        while not done.is_set():
            if bus.read(0x5016, 2) == 0xFFFF:
                missed.append("still")
            bus.read(0x1016, 2)
            looked[who] += 1

    readers = [threading.Thread(target=look, args=(who,)) for who in range(2)]
    for reader in readers:
        reader.start()
    most = rounds = 0
    while rounds < 2000 or min(looked) < 2000:
        bus.attach(0x100 * (rounds % 16), 8, PostPort(), "new")
        bus.move(0x1000, 0x2000)
        bus.cover(0x3000, 8, PostPort(), "cover")
        bus.move(0x2000, 0x1000)
        bus.uncover(0x3000)
        bus.detach(0x100 * (rounds % 16))
        most = max(most, bus.old_tables)
        rounds += 1
    done.set()
    for reader in readers:
        reader.join()
    assert missed == []
    assert most <= len(readers)
    assert bus.old_tables == 0
    assert [name for _, _, name in bus.ranges()] == ["moving", "still"]


def test_more_threads_than_a_bus_has_lines_for_readers(bus):
    bus.attach(0x80, 1, Register(5), "device")
    seen = []

    def look() -> None:
        seen.append(bus.read(0x80, 1))

    for _ in range(1100):
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
    assert seen == [5] * 1100
    bus.detach(0x80)
    assert bus.old_tables == 0
