"""A guest on a disk of the host's device mapper that fails: in one place, and in all writes."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.lab.guests.guest_run import expect
from tests.lab.scenarios.lifecycle import job_guest

MIB = 1 << 20
SECTORS = 16 * MIB // 512
NAME = "vllmd-broken"
# One MiB of errors behind eight that work (dm-zero.rst's neighbours: linear, error).
BROKEN = """0 16384 linear {loop} 0
16384 2048 error
18432 14336 linear {loop} 18432
"""
# Up for no second, down for an hour: all writes fail, and flushes (dm-flakey.rst).
NO_WRITES = "0 32768 flakey {loop} 0 0 3600 1 error_writes\n"
READS = """
sum() { dd if=/dev/vda bs=1M skip=$1 count=$2 iflag=direct 2>/dev/null | md5sum | cut -d' ' -f1; }
tries() { "$@" 2>/dev/null && echo works || echo fails; }
echo "guest: before $(sum 0 8)"
echo "guest: behind $(sum 9 7)"
echo "guest: inside $(tries dd if=/dev/vda of=/dev/null bs=4k skip=2048 count=1 iflag=direct)"
"""
WRITES = """
for at in 2048 2303 512; do
  echo "guest: write-$at $(tries dd if=/dev/zero of=/dev/vda bs=4k seek=$at count=1 conv=fsync)"
done
"""


@contextmanager
def mapped(image: Path, modules: str, table: str) -> Iterator[Path]:
    """A mapping of that name over the image, by a loop device."""
    for module in ("loop", "dm-mod", "dm-flakey"):
        subprocess.run(["modprobe", "-d", modules, module], check=True)
    made = subprocess.run(
        ["losetup", "--find", "--show", image], check=True, stdout=subprocess.PIPE, text=True
    )
    loop = made.stdout.strip()
    try:
        # The lab has no udev that would make the node.
        alone = {**os.environ, "DM_DISABLE_UDEV": "1"}
        words = ["dmsetup", "create", NAME]
        subprocess.run(words, input=table.format(loop=loop), text=True, check=True, env=alone)
        try:
            yield Path("/dev/mapper") / NAME
        finally:
            subprocess.run(["dmsetup", "remove", NAME], check=True, env=alone)
    finally:
        subprocess.run(["losetup", "--detach", loop], check=True)


def one_place_fails(kernel: str, initramfs: str, modules: str) -> None:
    """Requests that reach it fail, one by one; all others work, and the guest goes on.

    By the host's page cache a write fails with the flush behind it, and so do all flushes then.
    """
    for options, behind in ((",direct=on", "works"), ("", "fails")):
        data, seen, disk = on(BROKEN, options, kernel, initramfs, modules)
        expect(seen["before"] == md5(data[: 8 * MIB]), str(seen))
        expect(seen["behind"] == md5(data[9 * MIB :]), str(seen))
        found = [seen[name] for name in ("inside", "write-2048", "write-2303", "write-512")]
        expect(found == ["fails", "fails", "fails", behind], str(seen))
        expect(disk["errors"] >= 3 and disk["flush_failed"] is (not options), str(disk))


def all_writes_fail(kernel: str, initramfs: str, modules: str) -> None:
    """What is read is right; no write and no flush is said to have worked."""
    for options in (",direct=on", ""):
        data, seen, disk = on(NO_WRITES, options, kernel, initramfs, modules)
        expect(seen["before"] == md5(data[: 8 * MIB]), str(seen))
        expect(seen["inside"] == "works", str(seen))
        for at in (2048, 2303, 512):
            expect(seen[f"write-{at}"] == "fails", str(seen))
        expect(disk["errors"] >= 3, str(disk))


def on(
    table: str, options: str, kernel: str, initramfs: str, modules: str
) -> tuple[bytes, dict[str, str], dict[str, Any]]:
    """What is on the disk, what the guest said, and what `status` tells of the disk then."""
    script = READS + WRITES + "echo 'guest: done'\nsleep 1000\n"
    with job_guest(kernel, initramfs, script) as guest:
        system = guest.folder / "system.img"
        data = bytes(n * 7 & 0xFF for n in range(MIB)) * (SECTORS * 512 // MIB)
        system.write_bytes(data)
        with mapped(system, modules, table) as path:
            guest.env["VLLMD_HYPERVISOR_SYSTEM_IMAGE_FILEPATH"] = f"{path}{options}"
            guest.start().until("guest: done")
            (disk,) = [one for one in guest.status()["devices"] if one["name"] == "disk0"]
            guest.verb("stop", "--now")
            guest.wait()
        seen = dict(re.findall(r"guest: ([\w-]+) (\w+)$", guest.text, re.MULTILINE))
        print(seen, disk["errors"])
        return data, seen, disk


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()
