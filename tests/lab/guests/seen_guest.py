"""A small guest that tells of itself what is then looked for in its RAM, and goes to sleep."""

from __future__ import annotations

from pathlib import Path

from tests.lab.guests.cache import cached
from tests.lab.guests.initramfs import build_initramfs
from tests.lab.guests.kernels import Kernel
from tests.lab.rig.progress import step

VERSION = "1"
PACKAGE = "linux-image-cloud-amd64"
# Functions, data and what is per CPU; every kernel of the tests has them.
NAMES = (
    "_text", "start_kernel", "do_sys_openat2", "vfs_read", "init_task", "linux_banner",
    "jiffies_64", "entry_SYSCALL_64", "fixed_percpu_data", "_etext",
)  # fmt: skip
INIT = """
exec >/dev/ttyS0 2>&1
echo 0 >/proc/sys/kernel/kptr_restrict
grep -v '\\[' /proc/kallsyms >/tmp/symbols
grep -E ' ({names})$' /tmp/symbols | sed 's/^/guest: symbol /'
echo "guest: symbols $(wc -l </tmp/symbols)"
ps -o pid,comm | sed '1d;s/^/guest: process /'
echo "guest: ready"
while :; do sleep 1000; done
"""


class SeenGuest:
    """Paths for one kernel: ``image`` (a bzImage) and ``initramfs``."""

    def __init__(self, suite: str | None = None) -> None:
        self.kernel = Kernel(PACKAGE, suite)
        self.image = self.kernel.image
        name = f"seen-guest-{VERSION}-{self.kernel.root.name}-initramfs"
        self.initramfs = cached(name, self._make_initramfs)

    def _make_initramfs(self, path: Path) -> None:
        with step(f"making an initramfs for {self.kernel.release}"):
            init = INIT.replace("{names}", "|".join(NAMES))
            path.write_bytes(build_initramfs(self.kernel, [], init))
