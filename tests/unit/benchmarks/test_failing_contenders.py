"""A contender that fails is a row that says why; the others are measured all the same."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import __main__ as program
from benchmarks import bench_lab, bench_start, peers
from benchmarks.peers import Vmm
from tests.lab.rig.lab import LabError

GOOD = "import os, time; os.write(1, b'<'); os.write(1, b'>'); time.sleep(60)"
ABORTS = "import os, sys; print('error: failed to set MSR 0x10a', file=sys.stderr); os.abort()"
REFUSES = "import sys; print('noise', file=sys.stderr); sys.exit('no such CPU model')"
SILENT = "import time; time.sleep(60)"


def script(name: str, text: str) -> Vmm:
    return Vmm(name, [sys.executable, "-c", text])


@pytest.fixture
def contenders(tmp_path, monkeypatch) -> list[Vmm]:
    monkeypatch.setattr(bench_start, "WAIT_SECONDS", 2)
    once = tmp_path / "ran"
    twice = f"import os\nif os.path.exists({str(once)!r}): raise SystemExit('second time')\n"
    twice += f"open({str(once)!r}, 'w').close()\n{GOOD}"
    return [
        script("good", GOOD), script("QEMU microvm", ABORTS), script("refuses", REFUSES),
        script("silent", SILENT), Vmm("missing", ["/nowhere/vmm"]), script("later", twice),
        Vmm("unbuilt", [], problem="no gcc"), script("good too", GOOD),
    ]  # fmt: skip


REASONS = {
    "QEMU microvm": "ended by SIGABRT: error: failed to set MSR 0x10a",
    "refuses": "ended with code 1: no such CPU model",
    "silent": "no b'<' within 2 s",
    "missing": "/nowhere/vmm: No such file or directory",
    "later": "in round 1: ended with code 1: second time",
    "unbuilt": "no gcc",
}


def test_each_failure_is_a_row_with_its_reason(contenders, capsys, monkeypatch):
    monkeypatch.setattr(bench_start, "all_vmms", lambda *arguments: contenders)
    found = bench_start.measure({}, 2, 128, 1)
    assert {name: row["error"] for name, row in found.items() if "error" in row} == REASONS
    for name in ("good", "good too"):
        assert set(found[name]) == set(bench_start.KEYS)
        assert found[name]["start_ms"] > 0
    bench_start.report("title", found)
    lines = capsys.readouterr().out.splitlines()
    assert [line[:20].strip() for line in lines[3:]] == [vmm.name for vmm in contenders]
    for name, reason in REASONS.items():
        assert any(line.startswith(name) and reason in line for line in lines)


def test_all_may_fail(capsys):
    found = bench_start.race([script("refuses", REFUSES)], 1)
    bench_start.report("title", found)
    assert REASONS["refuses"] in capsys.readouterr().out


def test_the_program_ends_well_and_writes_what_it_found(contenders, tmp_path, monkeypatch):
    monkeypatch.setattr(bench_start, "all_vmms", lambda *arguments: contenders)
    output = tmp_path / "figures.json"
    monkeypatch.setattr(sys, "argv", ["x", "start", "--rounds", "1", "--output", str(output)])
    assert program.main() == 0
    small = json.loads(output.read_text())["start"]["small"]
    assert small["refuses"] == {"error": REASONS["refuses"]}
    assert "start_ms" in small["good"]


def test_without_a_compiler_the_c_program_is_a_row(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert peers.bare(Path("kernel"), tmp_path, 128, 1).problem.startswith("no gcc")
    (tmp_path / "gcc").write_text("#!/bin/sh\necho 'cannot find -lc' >&2\nexit 1\n")
    (tmp_path / "gcc").chmod(0o755)
    told = peers.bare(Path("kernel"), tmp_path, 128, 1).problem
    assert told == "bare.c does not build: cannot find -lc"


class FakeLab:
    """A lab in which one VMM fails, and another takes the lab with it."""

    closed = 0

    def call(self, function: str, timeout: float, vmm: str, **more: object) -> str:
        if vmm == "fails":
            raise AssertionError("in the lab: status 1\nno such CPU")
        if vmm == "loses the lab":
            raise LabError("the emulator is gone")
        return f'words\n{{"seconds": {more["seconds"]}}}\n'

    def close(self) -> None:
        FakeLab.closed += 1


def test_in_the_lab_as_well(capsys):
    names = ("good", "fails", "loses the lab")
    calls = [{"vmm": name, "seconds": n} for n in (3, 2) for name in names]
    rows = bench_lab.collect(FakeLab, calls)
    told = {"error": "in the lab: status 1\nno such CPU"}
    lost = {"error": "the lab was lost 3 times: the emulator is gone"}
    assert rows == [{"seconds": 3}, told, lost, {"seconds": 2}, told, lost]
    assert FakeLab.closed == 4
    table = {name: [rows[n], rows[n + 3]] for n, name in enumerate(names)}
    assert bench_lab.show("title", table) == {"good": {"seconds": 2}, "fails": told,
                                              "loses the lab": lost}  # fmt: skip
    said = capsys.readouterr().out
    assert "failed: no such CPU" in said
    assert "failed: the lab was lost 3 times" in said
