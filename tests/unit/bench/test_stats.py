"""The statistics against distributions whose truth is known."""

from __future__ import annotations

import itertools
import math
import random
import statistics

import pytest

from vmm.bench import stats
from vmm.bench.stats import Interval, beyond, median_interval, noise_floor, permutation_test

from vmm.bench.stats import midranks, percentiles, ratio_interval  # isort: skip


def logs(seed: int, count: int, median: float = 10.0, spread: float = 0.3) -> list[float]:
    """As times are: log-normal, with this median."""
    chance = random.Random(seed)
    return [median * math.exp(chance.gauss(0, spread)) for _ in range(count)]


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(stats, "RESAMPLES", 400)
    monkeypatch.setattr(stats, "PERMUTATIONS", 400)


@pytest.mark.parametrize("spread", [0.05, 0.8])
def test_the_interval_of_a_median_holds_the_true_one_as_often_as_it_says(quick, spread):
    found = [median_interval(logs(seed, 25, spread=spread)) for seed in range(200)]
    hits = sum(one.low <= 10.0 <= one.high for one in found)
    # 95 % of 200 are 190; three standard deviations are 9, and percentiles are a little narrow.
    assert 176 <= hits <= 199, hits


def test_the_interval_of_a_ratio_holds_the_true_one(quick):
    found = [
        ratio_interval(logs(seed, 25, 15.0), logs(1000 + seed, 25, 10.0)) for seed in range(200)
    ]
    hits = sum(one.low <= 1.5 <= one.high for one in found)
    assert 178 <= hits <= 200, hits


def test_more_runs_make_it_narrower():
    few, many = median_interval(logs(1, 10)), median_interval(logs(1, 160))
    assert (many.high - many.low) < (few.high - few.low) / 2


def test_nothing_is_found_where_nothing_is(quick):
    """The permutation test is right about how often it is wrong."""
    found = [permutation_test(logs(seed, 12), logs(5000 + seed, 12)) for seed in range(300)]
    wrong = sum(p < 0.05 for p in found)
    assert 3 <= wrong <= 30, wrong
    assert 0.4 < statistics.mean(found) < 0.6


def test_what_is_there_is_found(quick):
    found = [permutation_test(logs(seed, 12), logs(5000 + seed, 12, 15.0)) for seed in range(50)]
    assert sum(p < 0.05 for p in found) >= 40


def test_few_values_are_parted_in_every_way():
    first, second = [1.0, 2.0, 3.5, 4.0], [2.5, 5.0, 6.0, 7.0]
    both = first + second
    order = sorted(both)
    ranks = [order.index(value) + 1 for value in both]
    apart = abs(sum(ranks[:4]) - 18)
    ways = list(itertools.combinations(range(8), 4))
    expected = sum(abs(sum(ranks[n] for n in way) - 18) >= apart for way in ways) / len(ways)
    assert permutation_test(first, second) == expected
    assert permutation_test([1, 2, 3], [4, 5, 6]) == 0.1
    assert permutation_test([1, 2, 3, 4], [5, 6, 7, 8]) == 2 / 70


def test_chance_and_every_way_agree(monkeypatch):
    first, second = logs(1, 8), logs(2, 8, 11.5)
    monkeypatch.setattr(stats, "PERMUTATIONS", 20_000)
    exact = permutation_test(first, second)
    monkeypatch.setattr(stats, "PERMUTATIONS", 12_000)
    assert math.comb(16, 8) > stats.PERMUTATIONS
    assert permutation_test(first, second) == pytest.approx(exact, abs=0.02)
    assert permutation_test(range(20), range(100, 120)) > 0  # never by a sample of chance


def test_equal_values_share_their_ranks():
    assert midranks([3, 1, 3, 2]) == [3.5, 1, 3.5, 2]
    assert permutation_test([1] * 6, [1] * 6) == 1.0


def test_the_noise_of_a_against_a_holds_its_ratio(quick):
    """A second run of the same is beyond the noise about as seldom as the level says."""
    wrong = 0
    for seed in range(100):
        one, again, third = (logs(seed + n * 10_000, 12) for n in range(3))
        floor = noise_floor(one, again)
        assert floor >= abs(statistics.median(again) / statistics.median(one) - 1)
        wrong += beyond(ratio_interval(third, one), permutation_test(third, one), floor)
    assert wrong <= 10


def test_a_difference_must_be_improbable_and_larger_than_the_noise():
    ratio = Interval(1.2, 1.1, 1.3)
    assert beyond(ratio, 0.01, 0.1)
    assert not beyond(ratio, 0.06, 0.1)
    assert not beyond(ratio, 0.01, 0.25)
    assert beyond(Interval(0.8, 0.7, 0.9), 0.01, 0.1)
    assert not beyond(Interval(math.nan, math.nan, math.nan), 0.01, 0.0)


def test_the_same_values_give_the_same_answer():
    values, base = logs(3, 15), logs(4, 15)
    assert ratio_interval(values, base) == ratio_interval(values, base)
    assert permutation_test(values, base) == permutation_test(values, base)


def test_edges():
    assert median_interval([7.0]) == Interval(7.0, 7.0, 7.0)
    assert ratio_interval([0, 0], [0, 0]) == Interval(1.0, 1.0, 1.0)
    assert math.isnan(ratio_interval([1.0, 2.0], [0.0, 0.0]).value)
    assert noise_floor([0.0], [1.0]) == math.inf
    assert percentiles([float(n) for n in range(1001)]) == (25.0, 975.0)
