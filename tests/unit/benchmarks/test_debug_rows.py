"""What a debugger does: a way that is missing or fails is a row that says why."""

from __future__ import annotations

import sys

import pytest

from benchmarks import bench_debug
from benchmarks.bench_debug import API, QEMU, STUB, C
from benchmarks.bench_start import ContenderError
from benchmarks.contenders import Stub


class Way:
    closed = 0

    def __init__(self, us: float, fails: str = "") -> None:
        self._us = us
        self._fails = fails

    def batch(self, what: str, count: int) -> float:
        if what == self._fails:
            raise ContenderError(f"no {what} here")
        self._us += 1
        return self._us

    def close(self) -> None:
        Way.closed += 1


@pytest.fixture
def ways(monkeypatch):
    def missing(folder):
        raise ContenderError("no qemu-system-x86_64")

    def no_gcc(folder):
        raise FileNotFoundError(2, "No such file or directory", "gcc")

    found = {
        API: lambda folder: Way(100), STUB: lambda folder: Way(200, "step"), C: no_gcc,
        QEMU: missing,
    }  # fmt: skip
    monkeypatch.setattr(bench_debug, "WAYS", found)
    monkeypatch.setattr(Way, "closed", 0)


def test_rows_and_reasons(ways, capsys):
    found = bench_debug.measure(3, count=2)
    assert found["break"][QEMU] == {"error": "no qemu-system-x86_64"}
    assert (
        found["break"][C]
        == found["port"][C]
        == {"error": "cannot be built: [Errno 2] No such file or directory: 'gcc'"}
    )
    assert found["step"][STUB] == {"error": "no step here"}
    # The first round warms up.
    assert found["break"][API] == {"us": 109, "min_us": 105}
    assert list(found["port"]) == [API, C]
    assert Way.closed == 2
    for what, (title, _) in bench_debug.QUESTIONS.items():
        bench_debug.show(title, found[what], C)
    shown = capsys.readouterr().out
    assert "no step here" in shown
    assert "directory: 'gcc'" in shown


def test_a_stub_that_ends_at_once_is_told_with_its_last_words(tmp_path):
    words = "import sys; sys.exit('no such machine')"
    with pytest.raises(ContenderError, match="ended with code 1: no such machine"):
        Stub([sys.executable, "-c", words], tmp_path / "nobody.gdb")
    with pytest.raises(ContenderError, match="/nowhere/qemu: No such file"):
        Stub(["/nowhere/qemu"], tmp_path / "nobody.gdb")
