"""Initial RAM file systems: busybox, some kernel modules, and an init script."""

from __future__ import annotations

from pathlib import Path

from tests.lab.guests.cpio import Archive
from tests.lab.guests.kernels import Kernel
from tests.lab.guests.packages import unpacked

PROLOGUE = """#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
while read -r module args; do
  insmod /modules/$module $args || echo "init: insmod $module failed"
done </modules.list
"""


def busybox() -> Path:
    """Debian's static busybox."""
    root = unpacked("busybox-static")
    found = root / "bin/busybox"
    return found if found.exists() else root / "usr/bin/busybox"


def build_initramfs(
    kernel: Kernel,
    modules: list[str],
    init: str,
    arguments: dict[str, str] | None = None,
    files: dict[str, bytes] | None = None,
) -> bytes:
    """A compressed initramfs that loads ``modules`` and goes on with the shell script ``init``.

    ``arguments``: module parameters by module name; ``files``: further files by path.
    """
    archive = Archive()
    for name in ("bin", "dev", "proc", "sys", "new", "modules", "tmp", "mnt"):
        archive.directory(name)
    archive.device("dev/console", 5, 1)
    archive.file("bin/busybox", busybox().read_bytes(), 0o755)
    rows = []
    for path in kernel.load_order(modules):
        name = path.name.removesuffix(".xz")
        archive.file(f"modules/{name}", kernel.module_bytes(path))
        key = name.removesuffix(".ko").replace("-", "_")
        rows.append(f"{name} {(arguments or {}).get(key, '')}".rstrip())
    archive.file("modules.list", ("\n".join(rows) + "\n").encode() if rows else b"")
    for name, content in (files or {}).items():
        archive.file(name, content, 0o755)
    archive.file("init", (PROLOGUE + init).encode(), 0o755)
    return archive.compressed()
