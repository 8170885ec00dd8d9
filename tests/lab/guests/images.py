"""Disk images made without root or loop devices: ext4 from a folder, FAT from files."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from tests.lab.guests.packages import run

MIB = 1 << 20


def make_ext4(path: Path, folder: Path, size: int, label: str, offset: int | None = None) -> None:
    """An ext4 file system of ``size`` bytes with the content of ``folder``, owned by root.

    With ``offset`` it goes to that byte of an image that is there already.
    """
    extended = "root_owner=0:0,lazy_itable_init=0"
    if offset is None:
        with open(path, "wb") as file:
            file.truncate(size)
    else:
        extended += f",offset={offset}"
    run(
        [
            "mkfs.ext4", "-q", "-F", "-L", label, "-E", extended, "-d", str(folder), str(path),
            f"{size // 1024}k",
        ]
    )  # fmt: skip


def make_fat(path: Path, files: dict[str, bytes], label: str = "cidata", size: int = MIB) -> None:
    """A FAT file system with ``files`` in it, as a NoCloud seed has them."""
    with open(path, "wb") as file:
        file.truncate(size)
    run(["mkfs.vfat", "-n", label, str(path)])
    fill_fat(str(path), files)


def fill_fat(image: str, files: Mapping[str, Path | bytes]) -> None:
    """Copy files, by their paths, into a FAT file system; ``image`` as mtools(1) has it."""
    made: set[str] = set()
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            parents = name.split("/")[:-1]
            for depth in range(1, len(parents) + 1):
                parent = "/".join(parents[:depth])
                if parent not in made:
                    run(["mmd", "-i", image, f"::{parent}"])
                    made.add(parent)
            source = content
            if isinstance(source, bytes):
                source = Path(folder) / "content"
                source.write_bytes(content)
            run(["mcopy", "-o", "-i", image, str(source), f"::{name}"])
