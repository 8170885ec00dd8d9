"""RAM in snapshots: whoever wrote, what was there comes back; nothing is copied in vain."""

from __future__ import annotations

import errno
import mmap
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.process import open_descriptors
from tests.support.seccomp import IOCTL, answer
from vmm._native.host.fd import IoctlError
from vmm._native.memory.frozenram import FrozenRam
from vmm._native.memory.guestmem import GuestMemory
from vmm._native.memory.ramimage import RamTracker

PAGE = 4096
MIB = 1 << 20
HIGH = 1 << 32
PAGEMAP_SCAN = 0xC0606610  # _IOWR('f', 16, struct pm_scan_arg), of <linux/fs.h> from 6.7 on
# Shared memory with thp is a file of a tmpfs where the host allows it, else a memfd as well.
PRIVATE, MEMFD, HUGE = {"shared": False}, {"shared": True, "thp": False}, {"shared": True}
KINDS = pytest.mark.parametrize("kind", [PRIVATE, MEMFD, HUGE], ids=["private", "memfd", "huge"])
SHARED = pytest.mark.parametrize("kind", [MEMFD, HUGE], ids=["memfd", "huge"])


@pytest.fixture
def guest():
    made = []

    def make(kind=None, regions=((0, 4 * MIB),)):
        memory = GuestMemory(list(regions), **(kind or HUGE))
        tracker = RamTracker(memory)
        made.append((memory, tracker))
        return memory, tracker

    yield make
    for memory, tracker in made:
        tracker.close()
        memory.close()


def gpas(data: bytes) -> list[int]:
    return list(struct.unpack(f"<{len(data) // 8}Q", data))


@KINDS
def test_what_was_written_since_is_taken_back(guest, kind):
    memory, tracker = guest(kind)
    memory.write(0x5000, b"before")
    image = tracker.capture()
    memory.write(0x5000, b"after!")
    memory.write(3 * MIB, b"new")
    assert image.read(0x5000, 6) == b"before"
    assert tracker.restore(image) == 2
    assert memory.read(0x5000, 6) == b"before"
    assert memory.read(3 * MIB, 3) == bytes(3)


@KINDS
def test_a_view_and_an_address_stay_good(guest, kind):
    memory, tracker = guest(kind)
    slots = memory.slots
    view = memory.view(0x1000, PAGE)
    view[:3] = b"one"
    image = tracker.capture()
    view[:3] = b"two"
    assert memory.read(0x1000, 3) == b"two"
    assert image.read(0x1000, 3) == b"one"
    tracker.restore(image)
    assert view[:3] == b"one"
    assert memory.slots == slots
    view.release()


@KINDS
def test_several_snapshots_each_keep_their_own(guest, kind):
    memory, tracker = guest(kind)
    images = []
    for number in range(5):
        memory.write(0x3000, bytes([number]) * PAGE)
        memory.write(0x10000 + number * PAGE, b"x")
        images.append(tracker.capture())
    for number in (3, 0, 4, 1, 2):
        tracker.restore(images[number])
        assert memory.read(0x3000, PAGE) == bytes([number]) * PAGE
        written = [memory.read(0x10000 + n * PAGE, 1) == b"x" for n in range(6)]
        assert written == [n <= number for n in range(6)]


@SHARED
def test_the_first_one_of_a_file_copies_nothing(guest, kind):
    memory, tracker = guest(kind)
    memory.write(0, b"a" * MIB)
    assert tracker.capture().count == 0
    memory.write(0, b"b" * (3 * PAGE))
    assert tracker.capture().count == 3
    assert tracker.written() == [(0, 3)]


@SHARED
def test_a_large_change_is_dropped_at_once(guest, kind):
    memory, tracker = guest(kind, regions=((0, 64 * MIB),))
    memory.write(0x1000, b"kept")
    image = tracker.capture()
    memory.write(0, b"z" * (40 * MIB))
    assert tracker.restore(image) == 0
    assert memory.read(0x1000, 4) == b"kept"
    assert memory.read(30 * MIB, 4) == bytes(4)
    assert tracker.written() == []


@SHARED
def test_two_regions_are_one_file(guest, kind):
    memory, tracker = guest(kind, regions=((0, 4 * MIB), (HIGH, 4 * MIB)))
    memory.write(HIGH + 0x2000, b"high")
    memory.write(4 * MIB - PAGE, b"last")
    first = tracker.capture()
    memory.write(HIGH, b"edge")
    memory.write(4 * MIB - PAGE, b"LAST")
    second = tracker.capture()
    assert gpas(first.differing(second)) == [4 * MIB - PAGE, HIGH]
    tracker.restore(first)
    assert memory.read(HIGH, 4) == bytes(4)
    assert memory.read(HIGH + 0x2000, 4) == b"high"
    assert memory.read(4 * MIB - PAGE, 4) == b"last"
    tracker.restore(second)
    assert memory.read(HIGH, 4) == b"edge"
    with pytest.raises(ValueError, match="not inside the snapshot's RAM"):
        first.read(4 * MIB - 2, 4)


@KINDS
def test_children_see_neither_the_parent_nor_each_other(guest, kind):
    memory, tracker = guest(kind)
    memory.write(0x2000, b"parent")
    tracker.capture()
    memory.write(0x7000, b"apart")
    image = tracker.capture()
    children = [image.spawn() for _ in range(5)]
    memory.write(0x2000, b"PARENT")
    memory.write(0x9000, b"PARENT")
    for number, child in enumerate(children):
        assert child.read(0x2000, 6) == b"parent"
        assert child.read(0x7000, 5) == b"apart"
        assert child.read(0x9000, 6) == bytes(6)
        child.write(0x2000, b"child%d" % number)
    assert [child.read(0x2000, 6) for child in children] == [b"child%d" % n for n in range(5)]
    assert memory.read(0x2000, 6) == b"PARENT"
    for child in children:
        child.close()


def test_a_child_is_taken_and_restored_as_any_guest(guest):
    memory, tracker = guest()
    memory.write(0, b"base")
    child = tracker.capture().spawn()
    own = RamTracker(child)
    child.write(PAGE, b"mine")
    image = own.capture()
    child.write(PAGE, b"lost")
    assert own.restore(image) == 1
    assert child.read(0, 4) + child.read(PAGE, 4) == b"basemine"
    # The parent may become what the child was: both lie over the same file.
    tracker.restore(image)
    assert memory.read(PAGE, 4) == b"mine"
    own.close()
    child.close()


@SHARED
def test_nobody_writes_to_the_file_below(guest, kind):
    memory, tracker = guest(kind)
    memory.write(0, b"still")
    image = tracker.capture()
    mode = os.fstat(image.base.fd).st_mode & 0o777
    for change in (
        lambda: os.pwrite(image.base.fd, b"x", 0),
        lambda: os.ftruncate(image.base.fd, PAGE),
        lambda: mmap.mmap(image.base.fd, PAGE),
    ):
        with pytest.raises(OSError, match="not permitted|Bad file|Invalid argument|denied"):
            change()
    # A memfd is sealed; of a file without seals nothing is open that could write.
    assert (mode == 0o400) == (kind == HUGE and memory_is_tmpfs())
    names = [name for name in open_descriptors().values() if name == name_of(image.base.fd)]
    assert len(names) == 1


def name_of(fd):
    return os.readlink(f"/proc/self/fd/{fd}")


def memory_is_tmpfs():
    memory = GuestMemory([(0, 4 * MIB)], **HUGE)
    backing = memory.backing
    memory.close()
    return backing == "tmpfs"


def test_what_is_only_read_of_huge_pages_is_not_copied(guest):
    """The kernel maps them whole for reading, and they are the file's all the same."""
    memory, tracker = guest(HUGE, regions=((0, 16 * MIB),))
    memory.write(0, b"x" * (16 * MIB))
    tracker.capture()
    for gpa in range(0, 16 * MIB, PAGE):
        assert memory.read(gpa, 1) == b"x"
    assert tracker.capture().count == 0
    memory.write(5 * MIB + PAGE, b"y" * (3 * PAGE))
    memory.write(9 * MIB, b"z")
    image = tracker.capture()
    assert image.count == 4
    assert tracker.written() == [((5 * MIB) // PAGE + 1, 3), (9 * MIB // PAGE, 1)]
    assert image.read(9 * MIB, 2) == b"zx"


def test_a_guest_may_be_laid_over_another_one_s_file(guest):
    memory, tracker = guest()
    other, other_tracker = guest(PRIVATE)
    memory.write(0x4000, b"first")
    other.write(0x4000, b"other")
    image, strange = tracker.capture(), other_tracker.capture()
    assert gpas(image.differing(strange)) == [0x4000]
    tracker.restore(strange)
    assert memory.read(0x4000, 5) == b"other"
    tracker.restore(image)
    assert memory.read(0x4000, 5) == b"first"


def test_other_regions_are_refused(guest):
    _, tracker = guest()
    _, larger = guest(regions=((0, 8 * MIB),))
    with pytest.raises(ValueError, match="is not this guest's"):
        larger.restore(tracker.capture())
    with pytest.raises(ValueError, match="snapshots of different RAM"):
        larger.capture().differing(tracker.capture())


def test_written_to_a_file_and_mapped_again(guest, tmp_path):
    memory, tracker = guest(regions=((0, 64 * MIB),))
    memory.write(0x1000, b"base" * 1024)
    memory.write(0x9000, b"gone")
    tracker.capture()
    memory.write(50 * MIB, b"apart")
    memory.write(0x9000, bytes(PAGE))
    path = tmp_path / "ram"
    with open(path, "w+b") as file:
        file.truncate(PAGE + 64 * MIB)
        tracker.capture().write_to(file.fileno(), PAGE)
    assert path.stat().st_blocks * 512 < MIB
    base = FrozenRam(os.open(path, os.O_RDONLY), [(0, 64 * MIB)], PAGE)
    again = GuestMemory(base.regions, base=base)
    assert again.read(0x1000, PAGE) == b"base" * 1024
    assert again.read(0x9000, 4) == bytes(4)
    assert again.read(50 * MIB, 5) == b"apart"
    again.write(0, b"own")
    assert path.read_bytes()[PAGE : PAGE + 3] == bytes(3)
    own = RamTracker(again)
    assert own.written() == [(0, 1)]
    own.close()
    again.close()


def test_a_full_disk_is_told(guest):
    memory, tracker = guest()
    memory.write(0, b"x" * PAGE)
    fd = os.open("/dev/full", os.O_WRONLY)
    try:
        with pytest.raises(IoctlError, match="No space left"):
            tracker.capture().write_to(fd, 0)
    finally:
        os.close(fd)


def test_restoring_often_costs_nothing_that_stays(guest):
    memory, tracker = guest()
    image = tracker.capture()
    before = len(os.listdir("/proc/self/fd"))
    maps = len(open("/proc/self/maps").readlines())
    for number in range(10_000):
        memory.write((number % 64) * PAGE, number.to_bytes(8, "little"))
        tracker.restore(image)
    assert memory.read(0, 64 * PAGE) == bytes(64 * PAGE)
    assert len(os.listdir("/proc/self/fd")) == before
    assert len(open("/proc/self/maps").readlines()) <= maps + 2


def by_entries() -> None:
    """As on kernels before 6.7, where each page's entry is read: the same pages are found."""
    answer(IOCTL, errno.ENOTTY, PAGEMAP_SCAN)
    memory = GuestMemory([(0, 16 * MIB)], shared=True)
    tracker = RamTracker(memory)
    memory.write(0, b"x" * (16 * MIB))
    tracker.capture()
    assert memory.read(0, 16 * MIB) == b"x" * (16 * MIB)
    assert tracker.written() == []
    memory.write(5 * MIB + PAGE, b"y" * (3 * PAGE))
    memory.write(8 * MIB, b"w" * (2 * MIB))
    assert tracker.written() == [((5 * MIB) // PAGE + 1, 3), (8 * MIB // PAGE, 512)]
    image = tracker.capture()
    assert image.count == 515
    memory.write(8 * MIB, b"v")
    assert tracker.restore(image) == 515
    assert memory.read(8 * MIB, 2 * MIB) == b"w" * (2 * MIB)


def test_without_a_scan_of_the_page_map_the_same_is_found():
    code = f"from {__name__} import by_entries; by_entries()"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[3], capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
