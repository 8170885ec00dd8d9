"""Loop devices and small file systems on them; for tests that run as root."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

needs_loop = pytest.mark.skipif(
    os.geteuid() != 0 or not os.access("/dev/loop-control", os.R_OK | os.W_OK),
    reason="loop devices need root and /dev/loop-control",
)


@contextmanager
def loop_device(image: Path, *options: str) -> Iterator[str]:
    """Path of a loop device over an image."""
    device = subprocess.run(
        ["losetup", "--find", "--show", *options, image], check=True, capture_output=True, text=True
    ).stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


@contextmanager
def mounted(folder: Path, kind: str) -> Iterator[Path]:
    """A folder with a file system of its own: ramfs, or one that lies on a loop device."""
    place = folder / f"{kind}.mnt"
    place.mkdir()
    with ExitStack() as stack:
        device = kind
        if kind != "ramfs":
            image = folder / f"{kind}.fs"
            with open(image, "wb") as file:
                file.truncate(32 << 20)
            subprocess.run([f"mkfs.{kind}", "-q", "-F", image], check=True)
            device = stack.enter_context(loop_device(image))
        subprocess.run(["mount", "-t", kind, device, place], check=True)
        try:
            yield place
        finally:
            subprocess.run(["umount", place], check=True)
