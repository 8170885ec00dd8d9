"""What a reboot finds open: a kernel, an initramfs, the file system of guest RAM's file."""

from __future__ import annotations

import os

import pytest

from vmm._native.memory.guestmem import GuestMemory
from vmm.boot.kernel import open_plan
from vmm.errors import GuestError
from vmm.kept import Kept

REGIONS = [(0, 16 << 20)]


def test_files_stay_what_they_were(tmp_path):
    for name in ("kernel", "initramfs"):
        (tmp_path / name).write_text(name)
    kept = Kept(str(tmp_path / "kernel"), str(tmp_path / "initramfs"))
    for name in ("kernel", "initramfs"):
        (tmp_path / name).unlink()
    assert os.pread(kept.kernel, 9, 0) == b"kernel"
    assert os.pread(kept.initramfs, 9, 0) == b"initramfs"
    # The file is read, and is no kernel; it is not opened by its path.
    with pytest.raises(GuestError, match="not a kernel"):
        open_plan(str(tmp_path / "kernel"), None, kept.kernel)
    kept.close()
    kept.close()


def test_one_that_is_missing_leaves_nothing_open(tmp_path):
    (tmp_path / "kernel").write_text("kernel")
    before = os.listdir("/proc/self/fd")
    with pytest.raises(FileNotFoundError):
        Kept(str(tmp_path / "kernel"), str(tmp_path / "initramfs"))
    assert os.listdir("/proc/self/fd") == before


def test_ram_anew_is_of_the_same_kind():
    first = GuestMemory(REGIONS, shared=True)
    mount = first.dup_mount()
    first.settle()
    assert first.dup_mount() == -1
    first.write(0x1000, b"old")
    kind, refused = first.backing, first.refused
    assert (mount >= 0) == (kind == "tmpfs")
    first.close()
    second = GuestMemory(REGIONS, shared=True, again=(mount, refused))
    assert (second.backing, second.refused) == (kind, refused)
    assert second.read(0x1000, 3) == bytes(3)
    second.write((16 << 20) - 3, b"end")
    second.close()
    if mount >= 0:
        os.close(mount)


def test_what_was_refused_is_not_tried_again():
    memory = GuestMemory(REGIONS, shared=True, again=(-1, "fsopen: Operation not permitted"))
    if memory.backing != "memfd" or memory.huge:
        memory.close()
        pytest.skip("this host gives huge pages, or denies them, without a file system")
    assert memory.refused == "fsopen: Operation not permitted"
    memory.close()
