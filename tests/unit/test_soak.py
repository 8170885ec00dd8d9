"""The judge of a soak sees what grows, and is not moved by what only swings."""

from __future__ import annotations

import pytest

from tests.support.soak import GROWTH_MAX, figures_of, grown, warmed_up


def samples(**slopes: float) -> list[dict[str, float]]:
    """An hour of them; each name grows by so much in it."""
    return [
        {
            "at": at,
            **{name: 100 + at % 7 * (name == "rss") + at / 3600 * slopes.get(name, 0)
               for name in GROWTH_MAX},
        }
        for at in range(0, 3600, 5)
    ]  # fmt: skip


def test_flat():
    assert grown(figures_of(warmed_up(samples()))) == []


@pytest.mark.parametrize(("name", "by"), [("anonymous", 2000), ("descriptors", 5), ("threads", 3)])
def test_what_grows(name, by):
    figures = figures_of(warmed_up(samples(**{name: by})))
    assert figures[name]["per_hour"] == pytest.approx(by)
    assert [line.partition(":")[0] for line in grown(figures)] == [name]


def test_what_is_filled_at_the_start_does_not_count():
    begun = samples()
    for sample in begun[:20]:
        sample["anonymous"] = 0
    assert grown(figures_of(warmed_up(begun))) == []
