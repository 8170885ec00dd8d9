"""Devices of the lab for passing through, as arguments of QEMU, and what is behind them."""

from __future__ import annotations

import random
from pathlib import Path

NVME_BYTES = 16 << 20
# What is read where not all of it has to be.
FIRST_BYTES = 4 << 20
WRITES_BYTES = 384 << 20
FETCHED_BYTES = 1 << 20
FETCHED_NAME = "fetched"
LARGE_BYTES = 8 << 30
SMALL_BYTES = 1 << 20


def random_image(path: Path, size: int, seed: int = 1) -> Path:
    """``size`` bytes that are random but always the same."""
    path.write_bytes(random.Random(seed).randbytes(size))
    return path


def nvme(path: Path) -> list[str]:
    """An NVMe with the file's content; what is written goes to a temporary file."""
    drive = f"file={path},if=none,id=nvme,format=raw,snapshot=on"
    return ["-drive", drive, "-device", "nvme,drive=nvme,serial=lab"]


def shared_memory(name: str, size: int, place: str = "") -> list[str]:
    """A device whose BAR is ``size`` bytes of memory."""
    return [
        "-object", f"memory-backend-ram,id={name},size={size},share=on",
        "-device", f"ivshmem-plain,memdev={name}{place}",
    ]  # fmt: skip


def everything(content: Path, writes: Path, fetched: Path) -> list[str]:
    """One of each kind: an NVMe and one for writing, edu, memory, network, two in one group."""
    return [
        *nvme(content), "-device", f"edu,dma_mask={(1 << 48) - 1}",
        *shared_memory("large", LARGE_BYTES), *shared_memory("small", SMALL_BYTES),
        "-drive", f"file={writes},if=none,id=writes,format=raw,cache=unsafe",
        "-device", "nvme,drive=writes,serial=writes",
        "-netdev", f"user,id=net,tftp={fetched.parent}", "-device", "e1000e,netdev=net",
        # Behind a conventional bridge nothing keeps devices apart: one group.
        "-device", "pcie-pci-bridge,id=bridge",
        *shared_memory("pair", SMALL_BYTES, ",bus=bridge,addr=1"),
        "-device", "e1000,bus=bridge,addr=2",
    ]  # fmt: skip
