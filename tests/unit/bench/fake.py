"""Contenders that are no VMMs: scripts that behave as one does, well or badly."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.support.speed import patience

GOOD = r"import os, time; os.write(1, b'\x02'); os.write(1, b'\x03'); time.sleep(60)"
ABORTS = "import os, sys; print('error: failed to set MSR 0x10a', file=sys.stderr); os.abort()"
REFUSES = "import sys; print('noise', file=sys.stderr); sys.exit('no such CPU model')"
SILENT = "import time; time.sleep(60)"


def contender(name: str, script: str, *words: str, **more: object) -> dict[str, object]:
    return {"name": name, "command": [sys.executable, "-S", "-c", script, *words], **more}


def question(kind: str = "first-byte", **more: object) -> dict[str, object]:
    return {"kind": kind, "rounds": 2, "timeout": patience(20), **more}


def write(folder: Path, contenders: list, measurements: list, **more: object) -> Path:
    """A definitions file."""
    path = folder / "definitions.json"
    whole = {"contender": contenders, "measurement": measurements, **more}
    path.write_text(json.dumps(whole))
    return path


def row(name: str, values: dict[str, list[float]], twin: bool = False, **more: object) -> dict:
    return {"contender": name, "twin": twin, "values": values, "histograms": {}, **more}


def document(*rows: dict, **more: object) -> dict:
    """A result as load() gives it, of one measurement with the metric `time`."""
    measurement = {
        "name": "first", "kind": "first-byte", "title": "a title", "baseline": "A",
        "settings": {"memory_mib": 128, "cpus": 1, "rounds": 5, "warmup": 1},
        "metrics": {"time": {"unit": "ms", "better": "lower"}}, "rows": list(rows),
    }  # fmt: skip
    facts = {"machine": "m", "cpu": "c", "cpus": "2", "memory": "24 GiB", "kvm": "kvm_amd"}
    return {
        "schema": "vllmd-hypervisor-bench", "version": 1, "title": "A beside B",
        "started": "2026-01-02T03:04:05+00:00", "ended": "2026-01-02T03:05:05+00:00",
        "complete": True, "facts": facts, "contenders": {"A": {"version": "1", "command": "a"}},
        "measurements": [measurement], **more,
    }  # fmt: skip
