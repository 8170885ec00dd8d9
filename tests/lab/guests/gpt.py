"""Whole disks that boot themselves: a GPT, an EFI system partition, an ext4 root. Without root."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.lab.guests.images import MIB, fill_fat, make_ext4
from tests.lab.guests.packages import PackageError, run

SECTOR = 512
ESP_START = 1 * MIB
ESP_BYTES = 96 * MIB
ROOT_START = ESP_START + ESP_BYTES
# The backup of the partition table stands in the last sectors.
TAIL_BYTES = 1 * MIB


def make_gpt(
    path: Path, esp: Mapping[str, Path | bytes], root: Path | None = None, root_bytes: int = 0
) -> None:
    """A raw disk: ``esp`` has the files of the first partition, ``root`` the second's content."""
    with open(path, "wb") as file:
        file.truncate(ROOT_START + root_bytes + TAIL_BYTES)
    table = f"label: gpt\nstart={ESP_START // SECTOR}, size={ESP_BYTES // SECTOR}, type=U\n"
    if root is not None:
        table += f"start={ROOT_START // SECTOR}, size={root_bytes // SECTOR}, type=L\n"
    done = subprocess.run(
        ["sfdisk", "--quiet", str(path)], input=table, text=True, capture_output=True, check=False
    )
    if done.returncode:
        raise PackageError(f"sfdisk {path}: {done.stderr}")
    write_esp(path, esp)
    if root is not None:
        make_ext4(path, root, root_bytes, "root", offset=ROOT_START)


def write_esp(path: Path, files: Mapping[str, Path | bytes]) -> None:
    """Make the EFI system partition anew with these files."""
    # One sector a cluster: mkfs.vfat would choose by the size of the whole disk, and then there
    # were too few clusters for FAT32.
    run(
        [
            "mkfs.vfat", "-F", "32", "-s", "1", "-n", "ESP", "--offset", str(ESP_START // SECTOR),
            str(path), str(ESP_BYTES // 1024),
        ]
    )  # fmt: skip
    fill_fat(f"{path}@@{ESP_START}", files)
