"""The C programs of these benchmarks, compiled where they are used."""

from __future__ import annotations

import subprocess
from pathlib import Path


def compiled(source: str, folder: Path) -> Path:
    """The program of a C file beside this one."""
    program = folder / Path(source).stem
    path = Path(__file__).with_name(source)
    subprocess.run(["gcc", "-O2", "-static", "-o", program, path], check=True)
    return program
