"""Two results of one host: ratios new to old, and which are differences."""

from __future__ import annotations

from dataclasses import dataclass

from vmm.bench.facts import differences
from vmm.bench.results import Document
from vmm.bench.stats import Interval, beyond, noise_floor, permutation_test, ratio_interval
from vmm.bench.summary import values_of
from vmm.bench.words import number, percent, table
from vmm.errors import ConfigError


@dataclass(frozen=True)
class Change:
    """One figure in both results. ``floor``: the larger of the two noise floors."""

    measurement: str
    metric: str
    contender: str
    ratio: Interval
    p: float
    floor: float
    differs: bool
    better: bool


def changes(old: Document, new: Document) -> list[Change]:
    """Of all that both have measured in the same way; ConfigError where the hosts differ."""
    other = differences(old["facts"], new["facts"])
    if other:
        raise ConfigError(
            ["these results are of different hosts, whose times say nothing of each other:", *other]
        )
    before = {one["name"]: one for one in old["measurements"]}
    found = []
    for after in new["measurements"]:
        match = before.get(after["name"])
        if match is not None and _same_question(match, after):
            found += _changes(match, after)
    return found


def _same_question(old: Document, new: Document) -> bool:
    keys = ("memory_mib", "cpus")
    same = all(old["settings"].get(key) == new["settings"].get(key) for key in keys)
    return same and old["kind"] == new["kind"]


def _changes(old: Document, new: Document) -> list[Change]:
    found = []
    for metric, facts in new["metrics"].items():
        floor = max(_floor(old, metric), _floor(new, metric))
        for row in new["rows"]:
            first = values_of(old, row["contender"], metric)
            second = values_of(new, row["contender"], metric)
            if first and second and not row["twin"]:
                ratio, p = ratio_interval(second, first), permutation_test(second, first)
                better = (ratio.value < 1) == (facts["better"] == "lower")
                differs = beyond(ratio, p, floor)
                found.append(Change(new["name"], metric, row["contender"], ratio, p, floor,
                                    differs, better))  # fmt: skip
    return found


def _floor(measurement: Document, metric: str) -> float:
    base = values_of(measurement, measurement["baseline"], metric)
    again = values_of(measurement, measurement["baseline"], metric, twin=True)
    return noise_floor(base, again) if base and again else 0.0


def report(old: Document, new: Document) -> str:
    """The comparison as Markdown, with what changed on the host and in the contenders."""
    lines = [f"old: {old['started']}, new: {new['started']}", ""]
    for name in sorted(set(old["facts"]) | set(new["facts"])):
        pair = old["facts"].get(name, "unknown"), new["facts"].get(name, "unknown")
        if pair[0] != pair[1]:
            lines.append(f"- {name}: {pair[0]}, now {pair[1]}")
    found = changes(old, new)
    if not found:
        return "\n".join([*lines, "", "Nothing was measured in both in the same way.", ""])
    rows = [
        [one.measurement, one.metric, one.contender, number(one.ratio), f"{one.p:.3f}",
         percent(one.floor), verdict(one)]
        for one in found
    ]  # fmt: skip
    heads = ["measurement", "figure", "contender", "new / old", "p", "noise", ""]
    return "\n".join([*lines, "", table(heads, rows), "", *_drift(new, found)])


def verdict(change: Change) -> str:
    """In a word."""
    if not change.differs:
        return "no difference"
    return "better" if change.better else "worse"


def _drift(new: Document, found: list[Change]) -> list[str]:
    bases = {one["name"]: one["baseline"] for one in new["measurements"]}
    moved = [one for one in found if one.differs and bases[one.measurement] == one.contender]
    return [
        f"The baseline of {one.measurement!r} ({one.metric}) changed as well, {one.ratio.value:.2f}"
        " x: unless it is another version, the machine did; compare ratios to the baseline."
        for one in moved
    ]
