"""The harness itself: a number brings an input back, and no end of a child is missed."""

from __future__ import annotations

import pytest

from tests.fuzz import supervise
from tests.fuzz.target import Dice


def test_one_input_is_brought_back_by_its_number():
    first = supervise.run("virtqueue", 5, count=20_000, plant="unchecked")
    again = supervise.run("virtqueue", 5, first=first.index, count=1, plant="unchecked")
    assert first.found
    assert again.found.splitlines()[-1] == first.found.splitlines()[-1]
    assert again.index == first.index


def test_the_same_dice_for_the_same_number():
    rolls = [[Dice(seed, index).integer() for _ in range(3)] for seed in (1, 2) for index in (0, 1)]
    assert len({tuple(roll) for roll in rolls}) == 4
    assert rolls[0] == [Dice(1, 0).integer() for _ in range(3)]


@pytest.mark.parametrize(
    ("plant", "told"),
    [
        ("crash", "the process ended with -11"),
        ("stuck", "an input without an end"),
        ("raise", "ZeroDivisionError"),
        ("memory", "MemoryError"),
        ("late", "ended with 3"),
    ],
)
def test_every_end_is_seen(plant, told, monkeypatch):
    if plant == "stuck":
        monkeypatch.setattr(supervise, "STUCK_SECONDS", 3.0)
    result = supervise.run("self", 1, count=100, plant=plant)
    assert told in result.found, result.found
    assert result.index == (99 if plant == "late" else 7)


def test_what_is_found_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(supervise, "FOUND", tmp_path)
    result = supervise.run("self", 1, count=100, plant="raise")
    text = supervise.keep(result, False).read_text()
    assert text.startswith("python -m tests.fuzz --target self --seed 1 --set plain --at 7")
    assert "ZeroDivisionError" in text
