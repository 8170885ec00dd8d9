"""What stays open over a guest's reboot, because nothing of it could be opened again."""

from __future__ import annotations

import os


class Kept:
    """Descriptors, -1 for what there is not; they are this object's. Control thread.

    ``kernel`` and ``initramfs``: the files, as they were at the start; ``kvm``: KVM itself.
    ``mount``: the file system of guest RAM's file, where it has one of its own; ``refused``: why
    it has none.
    """

    def __init__(self, kernel_path: str, initramfs_path: str | None) -> None:
        self.initramfs = self.kvm = self.mount = -1
        self.refused: str | None = None
        self.kernel = os.open(kernel_path, os.O_RDONLY | os.O_CLOEXEC)
        if initramfs_path:
            try:
                self.initramfs = os.open(initramfs_path, os.O_RDONLY | os.O_CLOEXEC)
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """Idempotent."""
        for fd in (self.kernel, self.initramfs, self.kvm, self.mount):
            if fd >= 0:
                os.close(fd)
        self.kernel = self.initramfs = self.kvm = self.mount = -1
