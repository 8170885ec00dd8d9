"""Which pages a start writes to, as ranges; the guest that finds them out."""

from __future__ import annotations

import io

import pytest

from tests.support.packaging_tools import load
from vmm.bench.guests import ENTRY, pvh_elf
from vmm.boot.elf import plan_elf

rehearsal = load("binary/rehearsal")


def pages(ranges: list[tuple[int, int]]) -> set[int]:
    return {page for first, count in ranges for page in range(first, first + count)}


def test_ranges_without_a_gap():
    assert rehearsal.ranges([]) == []
    assert rehearsal.ranges([7]) == [(7, 1)]
    assert rehearsal.ranges([1, 2, 3, 9, 10]) == [(1, 3), (9, 2)]


@pytest.mark.parametrize("step", [2, 3, 50])
def test_too_many_ranges_are_joined(step):
    wanted = list(range(0, 1000 * step, step))
    found = rehearsal.ranges(wanted)
    assert 0 < len(found) <= rehearsal.RANGES_MAX
    assert set(wanted) <= pages(found)


def test_the_narrowest_gaps_are_joined():
    wanted = [10 * n for n in range(rehearsal.RANGES_MAX)]
    assert rehearsal.ranges(wanted) == [(page, 1) for page in wanted]
    found = rehearsal.ranges([*wanted, wanted[-1] + 2])
    assert found == [*[(page, 1) for page in wanted[:-1]], (wanted[-1], 3)]


def test_the_table_has_as_many_places():
    header = (rehearsal.Path(rehearsal.__file__).with_name("snapshot.h")).read_text()
    assert f"#define VMM_SNAPSHOT_RANGES {rehearsal.RANGES_MAX}\n" in header


def test_the_guest_is_a_kernel():
    data = pvh_elf(rehearsal.CODE)
    plan = plan_elf(io.BytesIO(data), "guest", len(data))
    assert plan.entry == ENTRY
    (segment,) = plan.segments
    assert (segment.gpa, segment.memory_size) == (ENTRY, len(rehearsal.CODE))
