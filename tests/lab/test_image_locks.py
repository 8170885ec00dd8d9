"""Our locks and QEMU's own, on this machine: neither writes to what the other uses."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.lab.rig.lab import QEMU
from tests.support.speed import patience
from vmm.errors import BusyError
from vmm.host.disk import Disk
from vmm.host.image_lock import lock_holders

SIZE = 1 << 20
SECONDS = 20


def qemu(path: Path, read_only: bool) -> subprocess.Popen[str]:
    """A QEMU that opens the image and runs nothing."""
    mode = "on" if read_only else "off"
    return subprocess.Popen(
        [
            QEMU, "-accel", "tcg", "-M", "microvm", "-S", "-nodefaults", "-display", "none",
            "-drive", f"if=none,id=d,format=raw,file={path},readonly={mode}",
            "-device", "virtio-blk-device,drive=d",
        ],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def refused(process: subprocess.Popen[str], image: Path) -> bool:
    """True when QEMU ends because of a lock, False once it holds its own."""
    deadline = time.monotonic() + patience(SECONDS)
    while process.poll() is None:
        if process.pid in lock_holders(os.stat(image)):
            return False
        assert time.monotonic() < deadline, "QEMU neither locks nor ends"
        time.sleep(0.05)
    assert process.stderr is not None
    text = process.stderr.read()
    assert "lock" in text, text
    return True


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "image"
    path.write_bytes(bytes(SIZE))
    return path


@pytest.mark.parametrize("ours_reads", [True, False], ids=["we-read", "we-write"])
@pytest.mark.parametrize("qemu_reads", [True, False], ids=["qemu-reads", "qemu-writes"])
@pytest.mark.parametrize("first", ["ours", "qemu"])
def test_two_readers_or_one_writer(image, ours_reads, qemu_reads, first):
    both = ours_reads and qemu_reads
    disk = Disk.open(str(image), read_only=ours_reads) if first == "ours" else None
    process = qemu(image, qemu_reads)
    try:
        if disk is not None:
            assert refused(process, image) is not both
            return
        assert not refused(process, image)
        if both:
            disk = Disk.open(str(image), read_only=True)
        else:
            with pytest.raises(BusyError, match=f"in use by process {process.pid}"):
                Disk.open(str(image), read_only=ours_reads)
    finally:
        process.kill()
        process.communicate()
        if disk is not None:
            disk.close()
