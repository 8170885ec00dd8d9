"""The default guest: Debian's cloud kernel, a small ext4 system with busybox, a config image.

It greets with what it sees of its machine, then powers itself off.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from tests.lab.guests.cache import cached
from tests.lab.guests.images import MIB, make_ext4, make_fat
from tests.lab.guests.initramfs import build_initramfs, busybox
from tests.lab.guests.kernels import Kernel
from tests.lab.rig.progress import step

VERSION = "3"
SYSTEM_BYTES = 32 * MIB
MODULES = [
    "virtio_pci", "virtio_blk", "virtio_console", "virtio_rng", "ext4", "vfat", "nls_cp437",
    "nls_ascii",
]  # fmt: skip
APPLETS = "sh mount umount findfs grep awk uname cat sync poweroff echo sleep"
# In the initramfs: find the system disk and go there.
FIND_ROOT = """
# Until its driver was loaded, this console could not show what the kernel said.
dmesg >/dev/console
for try in 1 2 3 4 5 6 7 8 9 10; do
  root=$(findfs LABEL=system 2>/dev/null) && break
  sleep 1
done
mount -t ext4 $root /new || { echo "init: no system disk"; poweroff -f; }
for d in proc sys dev; do mount --move /$d /new/$d; done
exec switch_root /new /sbin/init
"""
# On the system disk, as its init.
GREETING = """#!/bin/sh
config=$(findfs LABEL=cidata)
mount -t vfat -o ro,iocharset=ascii $config /mnt
exec >/dev/console 2>&1
echo
echo "Hello from the guest: Linux $(uname -r)"
echo "  CPUs:   $(grep -c ^processor /proc/cpuinfo)"
echo "  memory: $(awk '/MemTotal/ { print int($2 / 1024) " MiB" }' /proc/meminfo)"
for disk in /sys/block/vd*; do
  access=read-write; [ "$(cat $disk/ro)" = 1 ] && access=read-only
  echo "  disk:   ${disk##*/}, $(($(cat $disk/size) / 2048)) MiB, $access"
done
echo "  config: $(cat /mnt/message)"
count=$(($(cat /boots 2>/dev/null || echo 0) + 1))
echo $count >/boots
echo "  boots of this system disk: $count"
umount /mnt
mount -o remount,ro /
sync
poweroff -f
"""
MESSAGE = b"config disk read: all is well\n"


class DefaultGuest:
    """Paths of the default guest's files, made when they are not there yet."""

    def __init__(self, suite: str | None = None) -> None:
        self.kernel = Kernel("linux-image-cloud-amd64", suite)
        base = f"default-guest-{VERSION}-{self.kernel.root.name}"
        self.initramfs = cached(f"{base}-initramfs", self._make_initramfs)
        self.system = cached(f"default-guest-{VERSION}-system.img", make_system)
        self.config = cached(f"default-guest-{VERSION}-config.img", make_config)

    def _make_initramfs(self, path: Path) -> None:
        with step("making the default guest's initramfs"):
            path.write_bytes(build_initramfs(self.kernel, MODULES, FIND_ROOT))


def make_system(path: Path) -> None:
    with step("making the default guest's system disk"), tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for sub in ("bin", "sbin", "dev", "proc", "sys", "mnt", "tmp"):
            (folder / sub).mkdir()
        shutil.copy2(busybox(), folder / "bin/busybox")
        for applet in APPLETS.split():
            (folder / "bin" / applet).symlink_to("busybox")
        (folder / "sbin/init").write_text(GREETING)
        (folder / "sbin/init").chmod(0o755)
        make_ext4(path, folder, SYSTEM_BYTES, "system")


def make_config(path: Path) -> None:
    make_fat(path, {"message": MESSAGE, "meta-data": b"instance-id: default\n", "user-data": b""})
