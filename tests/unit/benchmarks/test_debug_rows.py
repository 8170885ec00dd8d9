"""What a debugger does: a way that is missing or fails is a row that says why."""

from __future__ import annotations

import pytest

from benchmarks import bench_debug
from benchmarks.bench_debug import API, QEMU, STUB, C
from benchmarks.bench_start import ContenderError


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
    assert found["break"][C] == found["port"][C] == {"error": "gcc is missing"}
    assert found["step"][STUB] == {"error": "no step here"}
    # The first round warms up.
    assert found["break"][API] == {"us": 109, "min_us": 105}
    assert list(found["port"]) == [API, C]
    assert Way.closed == 2
    for what, (title, _) in bench_debug.QUESTIONS.items():
        bench_debug.show(title, found[what], C)
    shown = capsys.readouterr().out
    assert "no step here" in shown
    assert "gcc is missing" in shown
