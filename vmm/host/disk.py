"""Disk images: opened, locked and measured once; they outlive a guest's reboot."""

from __future__ import annotations

import fcntl
import os
import stat
import struct

from vmm.errors import HOST_LACKS, ConfigError, HostError, VmmError
from vmm.host.image_lock import lock_image
from vmm.log.hub import get_logger

log = get_logger(__name__)

SECTOR = 512
# <linux/fs.h>: logical and physical block size, smallest and best I/O size of a block device.
BLKSSZGET = 0x1268
BLKPBSZGET = 0x127B
BLKIOMIN = 0x1278
BLKIOOPT = 0x1279
SERIAL_BYTES = 20


class Disk:
    """An open image. ``capacity`` in sectors of 512 bytes; block sizes in bytes.

    It is locked until close() (see image_lock).
    """

    def __init__(self, path: str, fd: int, read_only: bool) -> None:
        self.path = path
        self.fd = fd
        self.read_only = read_only
        found = os.fstat(fd)
        self.is_block_device = stat.S_ISBLK(found.st_mode)
        self.size = os.lseek(fd, 0, os.SEEK_END)
        self.capacity = self.size // SECTOR
        self.logical_block = SECTOR
        self.physical_block = SECTOR
        self.min_io = 0
        self.opt_io = 0
        if self.is_block_device:
            self._read_topology()
        identity = f"{found.st_dev}{found.st_rdev}{found.st_ino}"
        self.serial = identity.encode("ascii")[:SERIAL_BYTES]

    @classmethod
    def open(cls, path: str, read_only: bool) -> Disk:
        """Open and lock an image; HostError or BusyError says what is wrong with it."""
        mode = os.O_RDONLY if read_only else os.O_RDWR
        try:
            fd = os.open(path, mode | os.O_CLOEXEC)
        except OSError as error:
            raise cannot_open(path, read_only, error) from error
        try:
            kind = os.fstat(fd).st_mode
            if not stat.S_ISREG(kind) and not stat.S_ISBLK(kind):
                raise HostError(
                    f"{path} is neither a file nor a block device", "give a raw disk image"
                )
            lock_image(path, fd, read_only)
            disk = cls(path, fd, read_only)
            if not disk.capacity:
                raise too_small(path, disk.size)
        except BaseException:
            os.close(fd)
            raise
        if disk.size % SECTOR:
            log.warning(
                f"{path}: its size {disk.size} is no multiple of {SECTOR}; the last "
                f"{disk.size % SECTOR} bytes are not shown to the guest"
            )
        return disk

    def _read_topology(self) -> None:
        def ask(request: int) -> int:
            return int(struct.unpack("I", fcntl.ioctl(self.fd, request, bytes(4)))[0])

        self.logical_block = ask(BLKSSZGET)
        self.physical_block = ask(BLKPBSZGET)
        self.min_io = ask(BLKIOMIN)
        self.opt_io = ask(BLKIOOPT)

    def status(self) -> dict[str, object]:
        """Facts for `status`."""
        return {
            "path": self.path,
            "format": "raw",
            "read_only": self.read_only,
            "size": self.size,
            "lock": "shared" if self.read_only else "exclusive",
        }

    def close(self) -> None:
        """Close the image, which releases its lock; idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def cannot_open(path: str, read_only: bool, error: OSError) -> VmmError:
    """The error for an image that does not open: the setting's fault, unless the host lacks."""
    wanted = "reading" if read_only else "reading and writing"
    text = f"cannot open the disk image {path} for {wanted}: {error.strerror}"
    if error.errno in HOST_LACKS:
        return HostError(text, "raise the limit (ulimit -a), or see the kernel's log")
    return ConfigError([f"{text} (check the path and its permissions)"])


def too_small(path: str, size: int) -> ConfigError:
    """The error for an image without a single sector."""
    return ConfigError(
        [
            f"the disk image {path} has {size} bytes, less than one sector (make it larger: "
            f"truncate -s 1G {path})"
        ]
    )


def open_disks(system: tuple[str, ...], config: tuple[str, ...]) -> list[Disk]:
    """All images in the order of their slots: system disks read-write, config disks read-only."""
    disks: list[Disk] = []
    try:
        for path in system:
            disks.append(Disk.open(path, read_only=False))
        for path in config:
            disks.append(Disk.open(path, read_only=True))
    except BaseException:
        for disk in disks:
            disk.close()
        raise
    return disks
