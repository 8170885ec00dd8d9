"""Disk images made without root or loop devices: ext4 from a folder, FAT from files."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.lab.packages import run

MIB = 1 << 20


def make_ext4(path: Path, folder: Path, size: int, label: str) -> None:
    """An ext4 file system of ``size`` bytes with the content of ``folder``, owned by root."""
    with open(path, "wb") as file:
        file.truncate(size)
    run(
        [
            "mkfs.ext4", "-q", "-F", "-L", label, "-E", "root_owner=0:0,lazy_itable_init=0",
            "-d", str(folder), str(path),
        ]
    )  # fmt: skip


def make_fat(path: Path, files: dict[str, bytes], label: str = "cidata", size: int = MIB) -> None:
    """A FAT file system with ``files`` in its root, as a NoCloud seed has them."""
    with open(path, "wb") as file:
        file.truncate(size)
    run(["mkfs.vfat", "-n", label, str(path)])
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            source = Path(folder) / name
            source.write_bytes(content)
            run(["mcopy", "-i", str(path), str(source), f"::{name}"])
