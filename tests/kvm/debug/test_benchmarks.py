"""The benchmarks of a debugger's work do what they say, once and small."""

from __future__ import annotations

import shutil

import pytest

from benchmarks import bench_debug
from benchmarks.bench_debug import API, STUB, C


def test_each_way_answers_or_says_why():
    found = bench_debug.measure(1, count=2)
    assert set(found) == {"break", "step", "registers", "port"}
    for what, rows in found.items():
        for way, row in rows.items():
            assert row.get("error") or 0 < row["min_us"] <= row["us"], (what, way)
    assert all("us" in rows[API] for rows in found.values())
    assert all("us" in found[what][STUB] for what in ("break", "step", "registers"))
    if shutil.which("gcc"):
        assert "us" in found["port"][C]
        assert "us" in found["registers"][C]


def test_guest_ram_and_a_file_are_looked_through():
    pytest.importorskip("numpy")
    found = bench_debug.measure_scan(1, mib=16)
    assert set(found) == {bench_debug.SCAN, bench_debug.FILE}
    assert all(row["us"] > 0 for row in found.values())
