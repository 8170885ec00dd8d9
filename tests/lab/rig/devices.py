"""Devices of the lab for passing through, as arguments of QEMU, and what is behind them."""

from __future__ import annotations

import random
from pathlib import Path


def random_image(path: Path, size: int, seed: int = 1) -> Path:
    """``size`` bytes that are random but always the same."""
    path.write_bytes(random.Random(seed).randbytes(size))
    return path


def nvme(path: Path) -> list[str]:
    """An NVMe with the file's content; what is written goes to a temporary file."""
    drive = f"file={path},if=none,id=nvme,format=raw,snapshot=on"
    return ["-drive", drive, "-device", "nvme,drive=nvme,serial=lab"]
