from __future__ import annotations

from pathlib import Path

import numpy  # noqa: F401  (its thread pool must exist before threads are counted)
import pytest
from hypothesis import given
from hypothesis import strategies as st

import vmm.memory
from vmm._native.memory.guestmem import GuestMemory
from vmm.errors import HostError
from vmm.memory import allocate
from vmm.settings.memory import parse_memory

MIB = 1 << 20
LOW = (0, 2 * MIB)
HIGH = (1 << 32, 3 * MIB)


@pytest.fixture
def memory():
    memory = GuestMemory([LOW, HIGH])
    yield memory
    memory.close()


def test_fresh_memory_is_zero_and_keeps_what_is_written(memory):
    assert memory.read(0x1000, 16) == bytes(16)
    memory.write(HIGH[0] + 5, b"hello")
    assert memory.read(HIGH[0] + 4, 7) == b"\0hello\0"


@pytest.mark.parametrize(
    ("gpa", "length"),
    [
        (2 * MIB - 1, 2),  # across the end of the first region
        (2 * MIB, 1),
        (HIGH[0] - 1, 1),
        (HIGH[0] + 3 * MIB, 1),
        ((1 << 64) - 1, 1),
        ((1 << 64) - 1, 2),  # would wrap
        (HIGH[0], 1 << 62),
        (-1, 1),
        (0, 0),
    ],
)
def test_outside_is_refused(memory, gpa, length):
    with pytest.raises(ValueError, match="not inside guest RAM"):
        memory.view(gpa, length)


@given(gpa=st.integers(0, 1 << 33), length=st.integers(1, 1 << 33))
def test_translation_agrees_with_arithmetic(gpa, length):
    with GuestMemoryContext() as memory:
        inside = any(g <= gpa and gpa + length <= g + s for g, s in (LOW, HIGH))
        if inside:
            assert len(memory.view(gpa, length)) == length
        else:
            with pytest.raises(ValueError):
                memory.view(gpa, length)


class GuestMemoryContext:
    def __enter__(self):
        self.memory = GuestMemory([LOW, HIGH])
        return self.memory

    def __exit__(self, *exc):
        self.memory.close()


def test_view_shares_and_outlives_close(memory):
    view = memory.view(0x2000, 4)
    view[:] = b"abcd"
    assert memory.read(0x2000, 4) == b"abcd"
    memory.close()
    assert bytes(view) == b"abcd"  # the mapping waits for its last view
    with pytest.raises(ValueError, match="closed"):
        memory.read(0, 1)
    view.release()
    assert memory.count == 0


def test_numpy_shares_the_guest_memory(memory):
    array = memory.numpy(0x3000, 64, dtype="uint32")
    array[3] = 0x01020304
    assert memory.read(0x300C, 4) == b"\x04\x03\x02\x01"


def test_shared_memory_is_one_memfd():
    memory = GuestMemory([LOW, HIGH], shared=True, thp=False)
    with open("/proc/self/maps") as maps:
        lines = [line for line in maps if "guest-ram" in line]
    assert len(lines) == 2
    assert {line.split()[4] for line in lines} == {lines[0].split()[4]}
    memory.close()


def test_prefault_populates(memory):
    memory.prefault(4)
    with open("/proc/self/smaps") as smaps:
        text = smaps.read()
    assert "Rss:                3072 kB" in text or "Rss:                2048 kB" in text


@pytest.mark.parametrize(
    "regions",
    [[], [(0, 0)], [(0, 100)], [(1, 4096)], [(0, 8192), (4096, 4096)], [(4096, 4096), (0, 4096)]],
)
def test_bad_region_tables(regions):
    with pytest.raises(ValueError):
        GuestMemory(regions)


def test_too_much_is_an_error_with_the_call_named():
    with pytest.raises(OSError, match="mmap of guest RAM"):
        GuestMemory([(0, 1 << 50)])


HUGE = 2 * MIB


def free_huge_pages() -> int:
    """How many pages of 2 MiB are neither used nor promised."""
    folder = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")
    if not folder.exists():
        pytest.skip("this kernel has no huge pages of 2 MiB")
    numbers = [int((folder / f"{name}_hugepages").read_text()) for name in ("free", "resv")]
    return numbers[0] - numbers[1]


def test_huge_pages_are_reserved_or_refused_at_once():
    """Not at the first access, where there is nothing but SIGBUS left to tell it."""
    with pytest.raises(OSError, match="mmap of guest RAM"):
        GuestMemory([(0, HUGE * (free_huge_pages() + 1))], hugepage_size=HUGE)


def test_the_error_of_missing_huge_pages_says_what_helps():
    config = parse_memory(f"size={2 * (free_huge_pages() + 64)}M,hugepages=on")
    with pytest.raises(HostError, match=r"huge pages of 2048 KiB.*raise .*2048kB/nr_hugepages"):
        allocate(config)


class Recorder:
    """A GuestMemory that remembers what was asked of it."""

    refused = None

    def __init__(self, regions, **how) -> None:
        self.regions, self.asked = regions, [how]

    def bind_node(self, node) -> None:
        self.asked.append(("bind", node))

    def prefault_range(self, gpa, size, threads) -> None:
        self.asked.append(("prefault", gpa, size))


def test_huge_pages_of_a_node_are_taken_at_once(monkeypatch):
    monkeypatch.setattr(vmm.memory, "GuestMemory", Recorder)
    config = parse_memory("size=64M,hugepages=on,host_numa_node=0")
    assert allocate(config).asked[1:] == [("bind", 0), ("prefault", 0, 64 * MIB)]
    config = parse_memory("size=64M,host_numa_node=0")
    assert allocate(config).asked[1:] == [("bind", 0)]
