"""Snapshot, restore, fork, save and load of a guest in a script's hands."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from tests.support.counting_guest import PAGES, TOUCHED_GPA, count, kernel, rounds
from tests.support.guest_asm import RESULT_GPA, Program
from tests.support.two_vcpus import AP_CODE, RealMode, wake_others
from vmm import layout
from vmm._native.kvm import bus
from vmm.debug.guest import Guest
from vmm.errors import HostError, StateError

ROOT = Path(__file__).resolve().parents[2]
MIB = 1 << 20


@pytest.fixture
def guest(tmp_path):
    with Guest(kernel=kernel(tmp_path), memory="4M") as made:
        yield made


def run(guest: Guest) -> tuple[int, int]:
    assert guest.run(seconds=60).kind == "ended"
    return rounds(guest)


def test_restored_it_runs_again_with_the_same_result(guest):
    before = guest.snapshot()
    for _ in range(3):
        assert run(guest) == (1, 1)
        guest.restore(before)
        assert rounds(guest) == (0, 0)
        assert guest.outcome is None


def test_registers_come_back_and_nothing_old_is_seen(guest):
    before = guest.snapshot()
    rip = guest.cpus[0].regs.rip
    guest.cpus[0].regs.rax = 0x1234
    guest.restore(before)
    assert guest.cpus[0].regs.rax != 0x1234
    run(guest)
    assert guest.cpus[0].regs.rip != rip
    guest.restore(before)
    assert guest.cpus[0].regs.rip == rip
    guest.cpus[0].regs.rbx = 0x77


def test_registers_that_a_script_changed_are_in_the_snapshot(guest):
    guest.cpus[0].regs.rbx = 0x77
    with guest.fork() as child:
        assert child.cpus[0].regs.rbx == 0x77


def test_ram_that_a_script_wrote_is_taken_back(guest):
    before = guest.snapshot()
    array = guest.memory.numpy(0x3F0000, 16)
    array[:] = 7
    guest.memory.write(0x3E0000, b"script")
    guest.restore(before)
    assert np.array_equal(array, np.zeros(16))
    assert guest.memory.read(0x3E0000, 6) == bytes(6)


def test_what_differs_between_two(guest):
    first = guest.snapshot()
    run(guest)
    guest.restore(first)
    stop = guest.breakpoint(guest.cpus[0].regs.rip)
    stop.remove()
    guest.memory.write(RESULT_GPA, b"\5")
    second = guest.snapshot()
    assert first.diff(second).tolist() == [RESULT_GPA]
    assert first.diff(second).dtype == "uint64"
    assert second.memory.read(RESULT_GPA, 1) == b"\5"
    assert first.memory.numpy(RESULT_GPA, 4, "uint8").tolist() == [0] * 4
    assert second.memory.numpy(RESULT_GPA, (1, 1), "uint32").tolist() == [[5]]
    assert first.memory.size == 4 * MIB
    assert "4 MiB" in repr(first)


def test_five_forks_each_with_their_own_memory(guest):
    base = guest.snapshot()
    children = [base.fork() for _ in range(5)]
    try:
        for number, child in enumerate(children):
            child.memory.write(RESULT_GPA, bytes([10 * number]))
        assert [run(child)[0] for child in children] == [10 * n + 1 for n in range(5)]
        assert run(guest) == (1, 1)
        # A fork is a guest like any other: taken, restored, forked.
        children[4].restore(base)
        again = children[4].snapshot()
        assert run(children[4]) == (1, 1)
        with again.fork() as grandchild:
            assert run(grandchild) == (1, 1)
    finally:
        for child in children:
            child.close()


def test_a_fork_outlives_its_parent(tmp_path):
    with Guest(kernel=kernel(tmp_path), memory="4M") as parent:
        child = parent.fork()
    with child:
        assert run(child) == (1, 1)


def test_a_fork_has_an_id_of_its_own_and_a_restored_guest_its_old_one(guest):
    def identity(one: Guest) -> bytes:
        return one.memory.read(layout.VMGENID_GPA, layout.VMGENID_SIZE)

    base = guest.snapshot()
    with base.fork() as one, base.fork() as other:
        assert len({identity(guest), identity(one), identity(other)}) == 3
        assert one.machine.ged.state()["pending"] == 16
    guest.restore(base)
    assert identity(guest) == base.memory.read(layout.VMGENID_GPA, layout.VMGENID_SIZE)
    assert any(identity(guest))


def test_a_fork_s_clock_has_gone_on(guest):
    base = guest.snapshot()
    with base.fork() as child:
        later = child.snapshot()
        assert later.vm.clock_ns - base.vm.clock_ns == pytest.approx(
            later.vm.realtime_ns - base.vm.realtime_ns, abs=50_000_000
        )
        tsc = [dict(one.vcpus[0].msrs)[0x10] for one in (base, later)]
        passed = (tsc[1] - tsc[0]) * 1_000_000 // base.vcpus[0].tsc_khz
        assert passed == pytest.approx(later.vm.realtime_ns - base.vm.realtime_ns, abs=50_000_000)


AP_COUNT_GPA = 0x9000


def test_two_cpus(tmp_path):
    # The first wakes the second, which counts for ever, and waits until it has: cmp word, 0; je.
    program = wake_others(Program()).raw("66833d 00900000 00 74f6")
    second = RealMode()
    second.code += b"\xff\x06" + AP_COUNT_GPA.to_bytes(2, "little")  # inc word [0x9000]
    with Guest(kernel=kernel(tmp_path, program.power_off()), memory="16M", cpu_count=2) as guest:
        guest.memory.write(AP_CODE, second.for_ever())
        before = guest.snapshot()
        for _ in range(3):
            assert guest.run(seconds=60).kind == "ended"
            assert any(guest.memory.read(AP_COUNT_GPA, 2))
            guest.restore(before)
            assert guest.memory.read(AP_COUNT_GPA, 2) == bytes(2)
        with before.fork() as child:
            assert child.run(seconds=60).kind == "ended"
            assert any(child.memory.read(AP_COUNT_GPA, 2))


def test_a_running_guest_is_refused(tmp_path):
    with Guest(kernel=kernel(tmp_path, bytes(Program().raw("ebfe").code)), memory="4M") as guest:
        base = guest.snapshot()
        guest.start()
        with pytest.raises(RuntimeError, match="pause"):
            guest.snapshot()
        with pytest.raises(RuntimeError, match="pause"):
            guest.restore(base)
        guest.pause()
        guest.restore(base)


def test_an_outcome_still_to_come_is_not_the_restored_guest_s(guest):
    base = guest.snapshot()
    guest.cpus[0].vcpu.loop.late = bus.SHUTDOWN
    guest.restore(base)
    assert run(guest) == (1, 1)


def test_an_ended_guest_has_nothing_to_take_but_comes_back(guest):
    base = guest.snapshot()
    run(guest)
    with pytest.raises(RuntimeError, match="has ended"):
        guest.snapshot()
    guest.restore(base)
    assert run(guest) == (1, 1)


def test_a_snapshot_inside_a_breakpoint_s_action(guest):
    taken = []
    address = guest.cpus[0].regs.rip
    guest.breakpoint(address + 6, lambda cpu: taken.append(guest.snapshot()), hardware=False)
    guest.run(seconds=60)
    snapshot = taken.pop()
    # It shows the guest's code, not ours.
    assert snapshot.memory.read(address, 16) == guest.memory.read(address, 16)
    with snapshot.fork() as child:
        assert run(child) == (1, 1)


def test_watched_pages_stay_watched_and_are_in_no_snapshot(guest):
    guest.watch(TOUCHED_GPA, 4096)
    base = guest.snapshot()
    for _ in range(2):
        assert guest.run(seconds=60).kind == "watch"
        guest.restore(base)
        assert rounds(guest) == (0, 0)
    with base.fork() as child:
        assert run(child) == (1, 1)


def test_a_snapshot_of_another_machine_is_refused(guest, tmp_path):
    with Guest(kernel=kernel(tmp_path), memory="8M") as other:
        base = other.snapshot()
    with pytest.raises(StateError, match=r"another machine.*use snapshot.fork"):
        guest.restore(base)
    with pytest.raises(ValueError, match="different RAM"):
        guest.snapshot().diff(base)


def test_huge_pages_are_refused(guest, monkeypatch):
    from vmm._native.memory.guestmem import GuestMemory
    from vmm._native.memory.ramimage import RamTracker

    try:
        memory = GuestMemory([(0, 4 * MIB)], hugepage_size=2 * MIB)
    except OSError:
        pytest.skip("no huge pages on this host")
    tracker = RamTracker(memory)
    with pytest.raises(ValueError, match="hugepages=on"):
        tracker.capture()
    tracker.close()
    memory.close()


def test_a_disk_that_the_guest_writes_gets_an_overlay(tmp_path):
    image = tmp_path / "disk.img"
    image.write_bytes(b"image" + bytes(MIB - 5))
    with Guest(kernel=kernel(tmp_path), memory="4M", system_image=image) as guest:
        base = guest.snapshot()
        overlay = guest.machine.virtio[1].device.disk.overlay
        overlay.write(0, b"guest" * 1000)
        later = guest.snapshot()
        guest.restore(base)
        assert overlay.read(0, 5) == b"image"
        later.save(tmp_path / "saved")
        with later.fork() as child:
            other = child.machine.virtio[1].device.disk.overlay
            assert other.read(0, 10) == b"guestguest"
            other.write(0, b"child")
        assert run(guest) == (1, 1)
    assert image.read_bytes()[:5] == b"image"
    with Guest.load(tmp_path / "saved") as loaded:
        own = loaded.machine.virtio[1].device.disk.overlay
        assert own.read(0, 10) == b"guestguest"
        assert own.read(5000, 100) == bytes(100)


LOADER = """
import sys
from tests.support.counting_guest import rounds
from vmm.debug.guest import Guest
with Guest.load(sys.argv[1]) as guest:
    for _ in range(2):
        base = guest.snapshot()
        assert guest.run(seconds=60).kind == "ended"
        print(*rounds(guest))
        guest.restore(base)
"""


def test_saved_and_loaded_by_another_process(guest, tmp_path):
    guest.snapshot()
    guest.memory.write(RESULT_GPA, b"\x20")
    snapshot = guest.snapshot()
    path = tmp_path / "saved"
    snapshot.save(path)
    assert path.stat().st_blocks * 512 < MIB
    assert sorted(os.listdir(tmp_path)) == ["guest.elf", "saved"]
    out = subprocess.run(
        [sys.executable, "-c", LOADER, path], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert out.stdout.split() == ["33", "1"] * 2, out.stderr


def test_saving_replaces_and_guests_of_the_old_file_live_on(guest, tmp_path):
    path = tmp_path / "saved"
    guest.snapshot().save(path)
    with Guest.load(path) as loaded:
        guest.memory.write(RESULT_GPA, b"\x30")
        guest.snapshot().save(path)
        assert count(loaded) == 0
        with Guest.load(path) as new:
            assert count(new) == 0x30


def test_a_place_that_cannot_be_written_is_told_and_nothing_left(guest, tmp_path):
    snapshot = guest.snapshot()
    with pytest.raises(HostError, match=r"cannot save the snapshot as .*: No such file"):
        snapshot.save(tmp_path / "none" / "saved")
    with pytest.raises(HostError, match=r"cannot open the snapshot .*: No such file"):
        Guest.load(tmp_path / "none")


def test_a_full_disk_is_told_and_nothing_left(guest, tmp_path):
    mount = tmp_path / "small"
    mount.mkdir()
    size = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(mount)]
    if subprocess.run(size, capture_output=True, check=False).returncode:
        pytest.skip("needs to mount a tmpfs (root)")
    try:
        guest.memory.write(0x100000, os.urandom(MIB))
        with pytest.raises(HostError, match="No space left on device"):
            guest.snapshot().save(mount / "saved")
        assert os.listdir(mount) == []
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_ten_thousand_restores_leave_nothing(guest):
    base = guest.snapshot()
    run(guest)
    guest.restore(base)
    gc.collect()
    before = len(os.listdir("/proc/self/fd")), threading.active_count(), _rss_kib()
    for _ in range(10_000):
        guest.run(seconds=60)
        guest.restore(base)
    assert run(guest) == (1, 1)
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before[0]
    assert threading.active_count() == before[1]
    assert _rss_kib() - before[2] < 4096


def test_forks_leave_nothing(guest):
    base = guest.snapshot()
    base.fork().close()
    gc.collect()
    before = len(os.listdir("/proc/self/fd")), threading.active_count()
    for _ in range(50):
        with base.fork() as child:
            child.run(seconds=60)
    del child
    gc.collect()
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == before


def _rss_kib() -> int:
    with open("/proc/self/status", encoding="ascii") as file:
        return int(next(line for line in file if line.startswith("VmRSS")).split()[1])


def test_pages_touched_are_what_a_snapshot_holds(guest):
    guest.snapshot()
    guest.breakpoint(guest.cpus[0].regs.rip)
    for page in range(PAGES):
        guest.memory.write(TOUCHED_GPA + page * 4096, b"x")
    assert guest.snapshot().ram.count == PAGES
