"""Runs measurements: A B C A B C, the first rounds dropped, a failure ends its own runs only."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vmm.bench import results
from vmm.bench.definitions import Definitions, program_of
from vmm.bench.kinds import registry
from vmm.bench.kinds.kind import Sample, Setup
from vmm.bench.model import Contender, Measurement
from vmm.bench.template import TemplateError, fill, fill_command
from vmm.bench.trial import Trial, TrialError

MIB = 1 << 20
PREPARE_SECONDS = 300
Tell = Callable[[str], None]


@dataclass
class Row:
    """A contender's samples in one measurement, or why there are none. ``twin``: A once more."""

    contender: Contender
    twin: bool = False
    error: str = ""
    samples: list[Sample] = field(default_factory=list)


class Bench:
    """A folder for what is prepared, and the values of all templates."""

    def __init__(self, definitions: Definitions, folder: Path, tell: Tell) -> None:
        self.definitions = definitions
        self.folder = folder
        self.tell = tell
        self.problems: dict[str, str] = {}
        own = {"here": str(definitions.here), "prepared": str(folder)}
        self.values: dict[str, str | None] = {
            **{
                name: fill(text, own, f"variables, {name}")
                for name, text in definitions.variables.items()
            },
            **own,
        }

    def contenders(self) -> list[Contender]:
        """Those at hand, prepared; who is not, and not optional, has a problem instead."""
        found = []
        for contender in self.definitions.contenders:
            missing = program_of(contender, self.values) is None and not contender.prepare
            if missing and contender.optional:
                self.tell(f"{contender.name}: not at hand, left out")
                continue
            found.append(contender)
            self._prepare(contender)
        return found

    def _prepare(self, contender: Contender) -> None:
        if not contender.prepare:
            return
        try:
            what = f"{contender.name}, prepare"
            self._output(fill_command(contender.prepare, self.values, what))
        except (TemplateError, TrialError) as error:
            self.problems[contender.name] = f"prepare: {error}"
            self.tell(f"{contender.name}: prepare: {error}")

    def version(self, contender: Contender) -> str:
        """The first line that its `version` prints."""
        if not contender.version:
            return "unknown"
        try:
            what = f"{contender.name}, version"
            lines = self._output(fill_command(contender.version, self.values, what)).splitlines()
        except (TemplateError, TrialError) as error:
            return f"unknown: {error}"
        return lines[0].strip() if lines else "unknown"

    def _output(self, words: list[str]) -> str:
        try:
            done = subprocess.run(
                words, capture_output=True, timeout=PREPARE_SECONDS, stdin=subprocess.DEVNULL,
                check=False,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            raise TrialError(f"{words[0]}: {getattr(error, 'strerror', error)}") from error
        text = (done.stdout or done.stderr).decode(errors="replace").strip()
        if done.returncode:
            told = done.stderr.decode(errors="replace").strip().splitlines() or ["no word"]
            raise TrialError(f"{words[0]} ended with {done.returncode}: {told[-1]}")
        return text


def measure(bench: Bench, contenders: list[Contender], question: Measurement) -> list[Row]:
    """All rows of one measurement. KeyboardInterrupt passes: see measure_into()."""
    rows: list[Row] = []
    measure_into(rows, bench, contenders, question)
    return rows


def measure_into(
    rows: list[Row], bench: Bench, contenders: list[Contender], question: Measurement
) -> None:
    """The same; what was measured before an interrupt stands in ``rows``."""
    wanted = [one for one in contenders if one.name in question.contenders]
    rows += [Row(one, error=bench.problems.get(one.name, "")) for one in wanted]
    rows += [Row(one, True) for one in wanted if one.name == question.baseline]
    for row in rows:
        if question.memory > row.contender.limit:
            row.error = f"not asked: its limit is {row.contender.limit // MIB} MiB"
    with tempfile.TemporaryDirectory(prefix="vllmd-bench-") as name:
        for number in range(question.warmup + question.rounds):
            for row in rows:
                if not row.error:
                    _one(row, bench, question, Path(name), number)


def _one(row: Row, bench: Bench, question: Measurement, folder: Path, number: int) -> None:
    try:
        sample = run_once(bench, row.contender, question, folder)
    except (TrialError, TemplateError) as error:
        row.error = f"in round {number}: {error}" if number else str(error)
        row.samples.clear()
        bench.tell(f"    {row.contender.name}: {row.error}")
        return
    if number >= question.warmup:
        row.samples.append(sample)


def run_once(bench: Bench, contender: Contender, question: Measurement, folder: Path) -> Sample:
    """One run of one contender. TrialError, TemplateError."""
    kind = registry.KINDS[question.kind]

    def start(kernel: Path | None, more: Mapping[str, str]) -> Trial:
        return Trial(contender, values_for(bench, contender, question, kernel, more),
                     question.timeout)  # fmt: skip

    return kind.run(Setup(start, folder, question.memory, question.timeout, question.options))


def values_for(
    bench: Bench,
    contender: Contender,
    question: Measurement,
    kernel: Path | None,
    more: Mapping[str, str],
) -> dict[str, str | None]:
    """What the templates of a start are filled with; paths are meant from the definitions."""
    given: dict[str, str | None] = dict.fromkeys(("kernel", "initramfs", "cmdline", "disk"))
    if kernel is not None:
        given["kernel"] = str(kernel)
    else:
        for key, text in question.given.items():
            filled = " ".join(fill_command([text], bench.values, f"{question.name}, {key}"))
            given[key] = filled if key == "cmdline" else str(bench.definitions.here / filled)
    way = more.get("prefault", "off")
    if more.get("prefault") and not contender.prefault:
        raise TrialError("it defines no `prefault` = {off = ..., on = ...}")
    return {
        **bench.values,
        **given,
        "name": contender.name,
        "memory": str(question.memory // MIB),
        "cpus": str(question.cpus),
        "prefault": contender.prefault.get(way, ""),
    }


def as_document(question: Measurement, rows: list[Row]) -> results.Document:
    """The measurement as it stands in a result's file."""
    kind = registry.KINDS[question.kind]
    names = {name: None for row in rows for sample in row.samples for name in sample.values}
    metrics = {name: vars(kind.metric(name, question.options)) for name in names}
    return {
        "name": question.name,
        "kind": question.kind,
        "title": kind.title,
        "baseline": question.baseline,
        "settings": {
            "memory_mib": question.memory // MIB,
            "cpus": question.cpus,
            "rounds": question.rounds,
            "warmup": question.warmup,
        },
        "metrics": metrics,
        "rows": [_row(row) for row in rows],
    }


def _row(row: Row) -> results.Document:
    found: results.Document = {"contender": row.contender.name, "twin": row.twin}
    if row.error:
        return {**found, "error": row.error}
    values: dict[str, list[float]] = {}
    counts: dict[str, list[int]] = {}
    for sample in row.samples:
        for name, value in sample.values.items():
            values.setdefault(name, []).append(round(value, 6))
        for name, some in sample.histograms.items():
            before = counts.get(name, [0] * len(some))
            counts[name] = [a + b for a, b in zip(before, some, strict=True)]
    return {**found, "values": values, "histograms": counts}
