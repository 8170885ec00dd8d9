"""Tests in a process of their own, where KVM reports int3 (int3_reports.c tells how)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support import speed
from tests.support.speed import patience

SOURCE = Path(__file__).with_name("int3_reports.c")
ROOT = SOURCE.parents[2]


def library(folder: Path) -> Path:
    path = folder / "int3_reports.so"
    subprocess.run(
        ["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", "-o", path, SOURCE],
        check=True,
    )
    return path


def pytest_with_int3(folder: Path, *words: str, seconds: float = 240) -> tuple[int, str]:
    """Exit status and output of pytest with these words; ``folder`` is for files of its own."""
    environment = {name: value for name, value in os.environ.items() if "PYTEST" not in name}
    environment["LD_PRELOAD"] = str(library(folder))
    environment[speed.VARIABLE] = str(speed.slowness())
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
         f"--basetemp={folder / 'tests'}", *words],
        cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, timeout=patience(seconds), text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout
