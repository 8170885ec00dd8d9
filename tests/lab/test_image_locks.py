"""Our locks and QEMU's own, on this machine: neither writes to what the other uses."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path

import pytest

from tests.lab.rig.lab import QEMU
from vmm.errors import BusyError
from vmm.host.disk import Disk
from vmm.host.image_lock import lock_holders

SIZE = 1 << 20


def qemu(path: Path, read_only: bool) -> subprocess.Popen[str]:
    """A QEMU that opens the image and runs nothing."""
    mode = "on" if read_only else "off"
    return subprocess.Popen(
        [
            QEMU, "-accel", "tcg", "-M", "microvm", "-S", "-nodefaults", "-display", "none",
            "-drive", f"if=none,id=d,format=raw,file={path},readonly={mode}",
            "-device", "virtio-blk-device,drive=d", "-qmp", "stdio",
        ],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def refused(process: subprocess.Popen[str], image: Path) -> bool:
    """True when QEMU ends because of a lock, False once it answers: it holds its own then.

    That it has a lock is not enough: it takes one before it looks for those of others.
    """
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write('{"execute": "qmp_capabilities"}\n')
        process.stdin.flush()
    if any('"return"' in line for line in process.stdout):
        assert process.pid in lock_holders(os.stat(image))
        return False
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
