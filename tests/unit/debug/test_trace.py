"""Trace over vCPUs that do as they are told: what is kept, counted, shown and written."""

from __future__ import annotations

import json
import sys
import threading
import time
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest

from tests.support.fake_trace import BLOCK_GPA, IO, MMIO, FakeMachine
from tests.support.speed import patience
from vmm.debug.trace import Trace
from vmm.errors import HostError

LSR = (IO, 0x3FD, False)
NOTIFY = (MMIO, BLOCK_GPA + 0x6000, True)


@pytest.fixture
def machine():
    return FakeMachine(2)


@pytest.fixture
def trace(machine):
    trace = Trace(machine)
    yield trace
    trace.stop()


def test_nothing_is_recorded_while_it_is_off(machine, trace):
    machine.loops[0].exits(LSR)
    assert len(trace.numpy()) == len(trace) == 0
    trace.start()
    machine.loops[0].exits(LSR)
    trace.stop()
    machine.loops[0].exits(LSR)
    assert len(trace.numpy()) == len(trace) == 1


def test_records_of_all_vcpus_in_the_order_of_time(machine, trace):
    trace.start(drain_ms=0)
    for _ in range(3):
        for loop in machine.loops:
            loop.exits(LSR, NOTIFY)
    records = trace.numpy()
    assert records["vcpu"].tolist().count(1) == 6
    assert (np.diff(records["exit_tsc"].astype("i8")) >= 0).all()
    assert (records["ts_ns"] >= 0).all()
    assert (records["data"] == 0xFFFFFFFFFFFFFFFF).all()
    assert records["guest_ns"] == pytest.approx(2000 / trace.clock.hz * 1e9, abs=1)
    assert records["vmm_ns"] == pytest.approx(1000 / trace.clock.hz * 1e9, abs=1)


def test_times_are_those_of_the_monotonic_clock(machine, trace):
    before = time.monotonic_ns()
    trace.start(drain_ms=0)
    time.sleep(0.05)
    machine.loops[0].exits(LSR)
    after = time.monotonic_ns()
    at = trace.clock.anchor_ns + int(trace.numpy()["ts_ns"][0])
    assert before + 50_000_000 <= at <= after + 100_000


def test_a_later_start_adds_and_clear_forgets(machine, trace):
    for _ in range(2):
        with trace.start(drain_ms=0):
            machine.loops[1].exits(LSR)
    assert len(trace.numpy()) == 2
    trace.clear()
    assert (len(trace), trace.dropped) == (0, 0)


def test_a_full_ring_is_told_for_each_vcpu(machine, trace):
    trace.start(size=4, drain_ms=0)
    machine.loops[1].exits(*[LSR] * 7)
    assert trace.dropped_by_vcpu == [0, 3]
    assert (len(trace), trace.dropped) == (4, 3)
    assert trace.drain() == 4
    machine.loops[1].exits(*[LSR] * 2)
    trace.stop()
    trace.start(size=4, drain_ms=0)
    assert (len(trace), trace.dropped) == (6, 3)
    trace.clear()
    machine.loops[0].exits(LSR)
    assert (len(trace), trace.dropped) == (1, 0)


def test_memory_is_bounded_by_keep(machine, trace):
    trace.start(size=4, keep=2, drain_ms=0)
    for _ in range(4):
        machine.loops[0].exits(LSR, LSR)
        trace.drain()
    assert (len(trace), trace.dropped) == (6, 2)
    trace.stop()
    assert len(trace.numpy()) == 6


def test_the_reader_empties_the_rings_and_ends_with_stop(machine, trace):
    trace.start(size=4, drain_ms=1)
    for _ in range(20):
        machine.loops[0].exits(LSR, LSR)
        deadline = time.monotonic() + patience(5)
        while machine.loops[0].ring.waiting and time.monotonic() < deadline:
            time.sleep(0.001)
    trace.stop()
    assert (len(trace), trace.dropped) == (40, 0)
    assert "trace" not in [thread.name for thread in threading.enumerate()]


def test_mistakes_are_told(trace):
    with pytest.raises(ValueError, match="start\\(\\) first"):
        _ = trace.clock
    with pytest.raises(ValueError, match="keep=-1"):
        trace.start(keep=-1)
    with pytest.raises(ValueError, match="a ring of 1000 records"):
        trace.start(size=1000)
    trace.start()
    with pytest.raises(ValueError, match="on already"):
        trace.start()


def test_summary_adds_up(machine, trace):
    trace.start(drain_ms=0)
    machine.loops[0].exits(*[LSR] * 99, vmm=1000)
    machine.loops[0].exits(*[NOTIFY], vmm=90_000)
    summary = trace.summary()
    assert [row.name for row in summary.rows] == ["COM1 LSR", "disk0 queue notify"]
    us = 1e6 / trace.clock.hz
    lsr, notify = summary.rows
    assert (lsr.count, notify.count, summary.count) == (99, 1, 100)
    assert (lsr.mean_us, notify.p99_us) == pytest.approx((1000 * us, 90_000 * us), rel=0.01)
    assert lsr.share == pytest.approx(99 / 189, abs=0.01)
    assert lsr.rate == pytest.approx(99 / summary.seconds)
    assert summary["COM1 LSR"] is lsr
    with pytest.raises(KeyError, match="COM1 MSR"):
        summary["COM1 MSR"]


def test_tables_for_terminal_and_notebook(machine, trace):
    assert "0 exits" in str(trace.summary())
    trace.start(drain_ms=0)
    machine.loops[0].exits(LSR, (IO, 0x1234, False))
    text = str(trace.summary()).splitlines()
    assert text[0].split()[:2] == ["exit", "count"]
    assert len({len(line) for line in text[:-1]}) == 1
    assert "<td>COM1 LSR</td>" in trace._repr_html_()
    assert repr(trace) == "<Trace of guest, 2 vCPUs, on: 2 exits, 0 dropped>"


def test_a_guest_that_touches_everything_does_not_flood_the_table(machine, trace):
    trace.start(drain_ms=0)
    machine.loops[0].exits(*[(MMIO, 0xD0000000 + 4 * n, False) for n in range(500)])
    text = str(trace.summary())
    assert len(text.splitlines()) < 50
    assert "460 kinds more" in text


def test_pandas_has_the_names(machine, trace):
    trace.start(drain_ms=0)
    machine.loops[0].exits(LSR, NOTIFY, LSR)
    frame = trace.pandas()
    assert frame["exit"].tolist() == ["COM1 LSR", "disk0 queue notify", "COM1 LSR"]
    assert frame.groupby("exit", observed=True)["vmm_ns"].count()["COM1 LSR"] == 2


@pytest.fixture(scope="module")
def fonts(tmp_path_factory):
    """matplotlib keeps the files of its fonts open."""
    from matplotlib.figure import Figure

    figure = Figure()
    figure.subplots().set_title("once")
    figure.savefig(tmp_path_factory.mktemp("fonts") / "once.png")


@pytest.mark.usefixtures("fonts")
def test_the_picture_shows_the_largest_and_the_rest(machine, trace, tmp_path):
    trace.start(drain_ms=0)
    machine.loops[0].exits(LSR, LSR, NOTIFY, NOTIFY, (IO, 1, True), (IO, 2, True))
    figure = trace.plot(top=2)
    over_time, by_kind = figure.axes
    shown = [text.get_text() for text in by_kind.get_yticklabels()]
    assert set(shown) == {"COM1 LSR", "disk0 queue notify", "all others"}
    assert len(over_time.collections) == 3
    figure.savefig(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_of_nothing(trace):
    assert trace.plot().axes[0].get_title() == "no exits were traced"


@pytest.mark.parametrize(
    ("module", "use"),
    [("pandas", lambda t: t.pandas()), ("matplotlib.figure", lambda t: t.plot())],
)
def test_a_missing_package_is_named_with_its_remedy(trace, monkeypatch, module, use):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(HostError) as caught:
        use(trace)
    assert f"needs the Python package {module}" in caught.value.problem
    assert caught.value.remedy == f"pip install {module.partition('.')[0]}"


def check_event(event: dict[str, object]) -> None:
    """One event by the rules of Chrome's trace event format."""
    assert isinstance(event["pid"], int)
    assert isinstance(event["tid"], int)
    assert isinstance(event["name"], str)
    if event["ph"] == "M":
        assert event["name"] in ("process_name", "thread_name")
        assert isinstance(event["args"]["name"], str)
        return
    assert event["ph"] == "X"
    assert isinstance(event["cat"], str)
    for key in ("ts", "dur"):
        assert type(event[key]) is float
    assert event["dur"] >= 0


def test_the_perfetto_file_keeps_to_the_format(machine, trace, tmp_path):
    trace.start(drain_ms=0, size=16)
    for loop in machine.loops:
        loop.exits(*[LSR, NOTIFY] * 10)
    assert trace.perfetto(tmp_path / "trace.json") == 32
    document = json.loads((tmp_path / "trace.json").read_text())
    assert set(document) == {"displayTimeUnit", "traceEvents", "otherData"}
    assert (document["otherData"]["dropped"], document["otherData"]["records"]) == (8, 32)
    for event in document["traceEvents"]:
        check_event(event)
    tracks = {
        e["tid"]: e["args"]["name"] for e in document["traceEvents"] if e["name"][-5:] == "_name"
    }
    assert tracks == {0: "guest", 1: "vCPU 0", 2: "vCPU 1"}
    for tid in (1, 2):
        slices = [e for e in document["traceEvents"] if e["ph"] == "X" and e["tid"] == tid]
        assert [e["name"] for e in slices[:4]] == [
            "guest",
            "COM1 LSR",
            "guest",
            "disk0 queue notify",
        ]
        assert slices[1]["args"]["address"] == "0x3fd"
        for one, two in pairwise(slices):
            # Slices of one track follow each other, to the ns: readers drop what overlaps.
            assert round(two["ts"] * 1000) >= round(one["ts"] * 1000) + round(one["dur"] * 1000)


def test_a_perfetto_file_of_nothing_is_one_too(trace, tmp_path):
    assert trace.perfetto(tmp_path / "trace.json") == 0
    assert json.loads((tmp_path / "trace.json").read_text())["otherData"]["records"] == 0


def peak_of_writing(trace, path) -> int:
    tracemalloc.start()
    trace.perfetto(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_a_long_trace_is_written_in_the_memory_of_a_short_one(
    machine, trace, tmp_path, monkeypatch
):
    monkeypatch.setattr("vmm.debug.trace.CHUNK_BYTES", 64 * 2000)
    trace.start(drain_ms=0)
    peaks = []
    for _ in range(2):
        for _ in range(3):
            machine.loops[0].exits(*[LSR] * 2000)
            trace.drain()
        peaks.append(peak_of_writing(trace, tmp_path / "trace.json"))
    assert peaks[1] < 1.2 * peaks[0]
