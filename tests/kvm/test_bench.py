"""The benchmark's built-in guests on this KVM, under ours and under the C program."""

from __future__ import annotations

import dataclasses
import shutil
import statistics
from pathlib import Path

import pytest

from tests.support.binary import command
from tests.support.speed import patience
from vmm.bench import definitions, guests, running, schedule
from vmm.bench.kinds.registry import KINDS
from vmm.bench.model import Measurement
from vmm.bench.results import Document
from vmm.bench.tables import Table
from vmm.bench.trial import Trial

ROOT = Path(__file__).resolve().parents[2]
OURS, BARE = "ours (Python)", "C, the same ioctls"
OPTIONS = {"density": {"guests": 2, "seconds": 0.2}, "jitter": {"count": 50},
           "exit-cost": {"reads": 1000}, "exits": {"reads": 100}}  # fmt: skip


@pytest.fixture(scope="module")
def document(tmp_path_factory) -> Document:
    """The definitions of `make bench`, once each, as short as may be, beside the C program."""
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc (apt-get install gcc libc6-dev)")
    found = definitions.read(ROOT / "benchmarks/definitions.toml", {"python": command()})
    found = running.narrowed(found, [OURS, BARE], 1)
    short = [shortened(one) for one in found.measurements if one.memory < 1 << 30]
    return running.run(dataclasses.replace(found, measurements=tuple(short)), print)


def shortened(one: Measurement) -> Measurement:
    options = KINDS[one.kind].read(Table(OPTIONS.get(one.kind, {}), one.kind, []))
    baseline = BARE if one.kind != "exits" else ""
    return dataclasses.replace(
        one, options=options, warmup=0, timeout=patience(20), baseline=baseline
    )


def values(document: Document, kind: str, metric: str, contender: str = OURS) -> list[float]:
    (one,) = [one for one in document["measurements"] if one["kind"] == kind][-1:]
    rows = [row for row in one["rows"] if row["contender"] == contender and not row["twin"]]
    assert "error" not in rows[0], rows[0]
    return rows[0]["values"][metric]


@pytest.mark.parametrize(
    ("kind", "metric", "least", "most"),
    [
        ("first-byte", "first_byte", 1, 20_000),
        ("exit-cost", "lsr_read", 0.1, 10_000),
        ("memory", "pss", 1, 64),
        ("memory", "threads", 2, 20),
        ("density", "pss", 1, 64),
        ("jitter", "p50", 0, 50_000),
        ("exits", "io", 102, 102),
    ],
)
def test_each_kind_tells_what_can_be(document, kind, metric, least, most):
    for contender in (OURS, *([BARE] if kind not in ("exits", "memory", "density") else [])):
        assert all(least <= value <= most for value in values(document, kind, metric, contender))


def test_a_halted_guest_wakes_nobody(document):
    assert min(values(document, "density", "wakeups")) < 5


def test_the_timer_s_histogram_holds_every_time(document):
    (one,) = [one for one in document["measurements"] if one["kind"] == "jitter"]
    for row in one["rows"]:
        assert sum(row["histograms"]["late"]) == 50


def test_the_contenders_versions_are_told(document):
    assert document["contenders"][OURS]["version"].startswith("vllmd-hypervisor ")
    assert "gcc" in document["contenders"][BARE]["version"]


def test_a_timer_takes_its_time(tmp_path):
    """What the guest calls 30 times 1 ms is no less by the host's clock."""
    found = definitions.read(ROOT / "benchmarks/definitions.toml", {"python": command()})
    (ours,) = [one for one in found.contenders if one.name == OURS]
    (timer,) = [one for one in found.measurements if one.kind == "jitter"]
    bench = schedule.Bench(found, tmp_path, print)
    guest = guests.write_timer_guest(tmp_path / "timer.elf", 30, 1_000_000, 1000)
    with Trial(ours, schedule.values_for(bench, ours, timer, guest, {}), patience(20)) as trial:
        first, last = trial.until(b"="), trial.until(guests.LAST)
        lines = bytes(trial.text).partition(b"=")[2].split()
    assert last - first > 0.030
    cycles = [int(line, 16) for line in lines[:30]]
    assert min(cycles) > 0.5 * statistics.median(cycles) > 0
