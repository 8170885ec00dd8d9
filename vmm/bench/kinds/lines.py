"""What a whole guest says on its serial port: when it says it, and the figures that it tells."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from vmm.bench.kinds.kind import Kind, Metric, Sample, Setup
from vmm.bench.model import SECONDS
from vmm.bench.tables import Table
from vmm.bench.trial import Trial, TrialError


@dataclass(frozen=True)
class Stamp:
    """A name, and the pattern of the line that stands for it."""

    name: str
    pattern: re.Pattern[bytes]


class Boot(Kind):
    """Seconds from execution to lines of the serial port; stamps of the VMM's own beside them."""

    title = "phases of a boot, from exec"

    def read(self, table: Table) -> tuple[Stamp, ...]:
        """`stamps`: name and pattern of each, in the order in which the lines come."""
        found = []
        for one in table.tables("stamps"):
            found.append(Stamp(one.take("name", str) or "?", one.pattern("pattern")))
            one.done("name, pattern")
        if not found:
            table.wrong('`stamps` is missing: [{name = "kernel", pattern = "Linux version"}]')
        return tuple(found)

    def metric(self, name: str, options: Any) -> Metric:
        """Names of stamps; `vmm NAME` for the VMM's own."""
        return Metric("ms")

    def run(self, setup: Setup) -> Sample:
        """Until the last stamp; each looks behind the one before."""
        with setup.start(None, {}) as trial:
            at = 0
            values = {}
            for stamp in setup.options:
                at = trial.until_line(stamp.pattern, at)
                values[stamp.name] = (trial.when(at - 1) - trial.started) * 1000
            values.update(own_stamps(trial))
        return Sample(values)


@dataclass(frozen=True)
class Told:
    """A figure that the guest tells: its first group is the number."""

    name: str
    pattern: re.Pattern[bytes]
    metric: Metric


class Figures(Kind):
    """Numbers out of the guest's lines: what fio or another program in it has measured."""

    title = "figures that the guest tells"

    def read(self, table: Table) -> tuple[Told, ...]:
        """`figures`: name, pattern with one group, unit, better (`lower` or `higher`)."""
        found = []
        for one in table.tables("figures"):
            pattern = one.pattern("pattern")
            if pattern.groups != 1:
                one.wrong("`pattern` must have one group: the number")
            better = one.take("better", str, "higher")
            if better not in ("lower", "higher"):
                one.wrong(f"`better` must be lower or higher, not {better!r}")
            metric = Metric(one.take("unit", str, ""), better)
            found.append(Told(one.take("name", str) or "?", pattern, metric))
            one.done("name, pattern, unit, better")
        if not found:
            table.wrong("`figures` is missing: name, pattern, unit and better of each")
        return tuple(found)

    def metric(self, name: str, options: Any) -> Metric:
        """As the definitions say."""
        metrics: list[Metric] = [told.metric for told in options if told.name == name]
        return metrics[0]

    def run(self, setup: Setup) -> Sample:
        """Until all are told."""
        values = {}
        with setup.start(None, {}) as trial:
            for told in setup.options:
                trial.until_line(told.pattern)
                found = told.pattern.search(trial.text)
                values[told.name] = number(found[1] if found else b"", told.name)
        return Sample(values)


def number(text: bytes, name: str) -> float:
    """A number of the guest's."""
    try:
        return float(text)
    except ValueError as error:
        raise TrialError(f"{name}: told was {text!r}, which is no number") from error


def own_stamps(trial: Trial) -> dict[str, float]:
    """Ms of the VMM's own phases, found on its stderr by the contender's `timing`."""
    timing = trial.contender.timing
    if not timing:
        return {}
    factor = SECONDS[timing["unit"]] * 1000
    found = re.finditer(timing["pattern"], trial.told(), re.MULTILINE)
    return {f"vmm {one['name']}": number(one["time"].encode(), "timing") * factor for one in found}
