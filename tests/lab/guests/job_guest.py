"""A small guest that does what its config disk says: busybox in an initramfs, Debian's kernel.

The config disk is a shell script, as it is. The console is the last ``console=`` of the command
line; the system disk has no file system, so a script keeps what it must remember in its sectors.
"""

from __future__ import annotations

from pathlib import Path

from tests.lab.guests.cache import cached
from tests.lab.guests.initramfs import build_initramfs
from tests.lab.guests.kernels import Kernel
from tests.lab.rig.progress import step

VERSION = "2"
SECTOR = 512
MODULES = ["virtio_pci", "virtio_blk", "virtio_console", "virtio_rng", "nvme"]
INIT = """
for try in 1 2 3 4 5 6 7 8 9 10; do
  [ -b /dev/vdb ] && break
  sleep 1
done
tr -d '\\000' </dev/vdb >/tmp/job
exec >/dev/console 2>&1
echo "guest: user space reached"
sh /tmp/job
echo "guest: job done"
poweroff -f
sleep 1000
"""


class JobGuest:
    """Paths for one kernel: ``image`` (bzImage), ``vmlinux`` (ELF), ``initramfs``.

    ``more``: further kernel modules to load. Cloud kernels, the default, have few drivers.
    """

    def __init__(
        self,
        suite: str | None = None,
        more: tuple[str, ...] = (),
        package: str = "linux-image-cloud-amd64",
    ) -> None:
        self.modules = [*MODULES, *more]
        self.kernel = Kernel(package, suite)
        self.image = self.kernel.image
        name = "-".join(["job-guest", VERSION, *more, self.kernel.root.name, "initramfs"])
        self.initramfs = cached(name, self._make_initramfs)

    def _make_initramfs(self, path: Path) -> None:
        with step(f"making an initramfs for {self.kernel.release}"):
            path.write_bytes(build_initramfs(self.kernel, self.modules, INIT))


def write_job(path: Path, script: str) -> Path:
    """A config disk that makes the guest run ``script``."""
    data = script.encode()
    path.write_bytes(data + bytes(-len(data) % SECTOR))
    return path
