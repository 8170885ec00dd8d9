"""Medians, bootstrap intervals, a permutation test: plain Python, the same for the same seed.

Sources: Efron and Tibshirani, An Introduction to the Bootstrap, 13.3 (percentile intervals) and 15
(permutation tests); Phipson and Smyth 2010 (no p of zero from a random sample of permutations).
"""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

RESAMPLES = 2000
PERMUTATIONS = 5000
CONFIDENCE = 0.95
SEED = 1


@dataclass(frozen=True)
class Interval:
    """A figure, and where it lies with a confidence of 95 %."""

    value: float
    low: float
    high: float


def percentiles(found: list[float]) -> tuple[float, float]:
    """The ends of the middle 95 % of what resampling found."""
    found.sort()
    cut = (1 - CONFIDENCE) / 2
    last = len(found) - 1
    return found[round(cut * last)], found[round((1 - cut) * last)]


def median_interval(values: Sequence[float], seed: int = SEED) -> Interval:
    """The median; one value alone has no interval but itself."""
    chance = random.Random(seed)
    found = [
        statistics.median(chance.choices(values, k=len(values))) for _ in range(_resamples(values))
    ]
    return Interval(statistics.median(values), *percentiles(found))


def ratio_interval(values: Sequence[float], base: Sequence[float], seed: int = SEED) -> Interval:
    """The ratio of the medians; both are resampled. NaN where the base is zero."""
    chance = random.Random(seed)
    found = []
    for _ in range(max(_resamples(values), _resamples(base))):
        above = statistics.median(chance.choices(values, k=len(values)))
        below = statistics.median(chance.choices(base, k=len(base)))
        found.append(_ratio(above, below))
    value = _ratio(statistics.median(values), statistics.median(base))
    if any(math.isnan(one) for one in (*found, value)):
        return Interval(math.nan, math.nan, math.nan)
    return Interval(value, *percentiles(found))


def _resamples(values: Sequence[float]) -> int:
    return RESAMPLES if len(set(values)) > 1 else 1


def _ratio(above: float, below: float) -> float:
    if below:
        return above / below
    return 1.0 if not above else math.nan


def permutation_test(first: Sequence[float], second: Sequence[float], seed: int = SEED) -> float:
    """How likely ranks so far apart are if both are of one kind: all ways to part the values.

    The statistic is the rank sum: outliers, of which a busy machine has many, count as no more
    than the largest. All ways are tried where they are at most PERMUTATIONS, else that many.
    With three values each the least is 0.1, with four 0.03.
    """
    ranks = midranks([*first, *second])
    size = len(first)
    expected = size * (len(ranks) + 1) / 2
    apart = abs(sum(ranks[:size]) - expected)
    if math.comb(len(ranks), size) <= PERMUTATIONS:
        sums = [abs(sum(some) - expected) for some in itertools.combinations(ranks, size)]
        return sum(one >= apart for one in sums) / len(sums)
    chance = random.Random(seed)
    hits = sum(
        abs(sum(chance.sample(ranks, size)) - expected) >= apart for _ in range(PERMUTATIONS)
    )
    return (hits + 1) / (PERMUTATIONS + 1)


def midranks(values: Sequence[float]) -> list[float]:
    """Places in the order of size, from 1; equal values share the middle of theirs."""
    ordered = sorted(values)
    places: dict[float, tuple[int, int]] = {}
    for place, value in enumerate(ordered, 1):
        first = places.get(value, (place, place))[0]
        places[value] = first, place
    return [sum(places[value]) / 2 for value in values]


def noise_floor(first: Sequence[float], again: Sequence[float], seed: int = SEED) -> float:
    """How far from 1 the ratio of A to A may lie: the far end of its interval. 0.05 is 5 %."""
    found = ratio_interval(again, first, seed)
    if math.isnan(found.value):
        return math.inf
    return max(found.high - 1, 1 - found.low, 0.0)


def beyond(ratio: Interval, p: float, floor: float) -> bool:
    """Whether a ratio is a difference: improbable by chance, and larger than A is from A."""
    return p < 1 - CONFIDENCE and abs(ratio.value - 1) > floor
