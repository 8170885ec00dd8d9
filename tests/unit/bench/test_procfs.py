"""What /proc and debugfs tell: of this process, and of a folder as KVM makes them."""

from __future__ import annotations

import mmap
import os
import time

from vmm.bench import procfs

MIB = 1 << 20


def test_memory_without_what_is_as_large_as_guest_ram():
    before = procfs.memory_kib(os.getpid())
    with mmap.mmap(-1, 64 * MIB) as ram, mmap.mmap(-1, 8 * MIB) as own:
        for place in range(0, 64 * MIB, 4096):
            ram[place] = 1
        for place in range(0, 8 * MIB, 4096):
            own[place] = 1
        after = procfs.memory_kib(os.getpid())
    for kind in ("pss", "private"):
        # What this process gives back meanwhile is missing in it.
        assert 7 * 1024 <= after[kind] - before[kind] < 24 * 1024


def test_context_switches_are_counted():
    before = procfs.switches(os.getpid())
    for _ in range(20):
        time.sleep(0.001)
    assert procfs.switches(os.getpid()) - before >= 20
    assert procfs.threads(os.getpid()) >= 1


def test_exits_are_the_sum_of_a_process_s_machines(tmp_path, monkeypatch):
    monkeypatch.setattr(procfs, "KVM_STATISTICS", tmp_path)
    assert procfs.kvm_exits(42) is None
    for name, count in (("42-11", 5), ("42-13", 7), ("421-3", 100)):
        folder = tmp_path / name
        (folder / "vcpu0").mkdir(parents=True)
        (folder / "io_exits").write_text(f"{count}\n")
        (folder / "exits").write_text("50\n")
        (folder / "tlb_flush").write_text("9\n")
    assert procfs.kvm_exits(42) == {"io_exits": 12, "exits": 100}
