"""Disk images: opened, locked and measured once; they outlive a guest's reboot."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct

from vmm._native.host.posix import punch_hole
from vmm.errors import HOST_LACKS, ConfigError, HostError, VmmError
from vmm.host.image_lock import lock_image
from vmm.host.serial import default_serial, exact_serial
from vmm.log.hub import get_logger

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from vmm._native.disk.blkpump import Flushed
    from vmm._native.disk.limits import Limits
    from vmm._native.disk.overlay import Overlay
    from vmm.settings.images import ImageSpec, Rate

log = get_logger(__name__)

SECTOR = 512
# <linux/fs.h>: whether a block device is read-only, how it discards, its logical and physical
# block size, its smallest and best I/O size.
BLKROGET = 0x125E
BLKDISCARD = 0x1277
BLKSSZGET = 0x1268
BLKPBSZGET = 0x127B
BLKIOMIN = 0x1278
BLKIOOPT = 0x1279
# No block device discards so small a piece from the middle of a sector.
IMPOSSIBLE_RANGE = struct.pack("QQ", 1, SECTOR)
PAGE = 4096
# With these the kernel says that a file system or device never can.
UNABLE = (errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODEV, errno.ENOTTY)


class Disk:
    """An open image. ``capacity`` in sectors of 512 bytes; block sizes in bytes.

    It is locked until close() (see image_lock). ``serial`` names it to the guest. ``overlay``:
    what is above the image, where reads and writes then go (see OverlayDisk).
    """

    overlay: Overlay | None = None
    # Of direct I/O: of buffers and of the file, in bytes; None where the page cache is used.
    alignment: tuple[int, int] | None = None
    # What all queues together keep to, and how it was said.
    limits: Limits | None = None
    rates: Mapping[str, Rate] = {}
    # Whether a flush has failed: one for all who write here, a rebooted guest included.
    flushed: Flushed | None = None
    # How many request queues at most; None: as layout.disk_queues() finds right.
    queues: int | None = None

    def __init__(self, path: str, fd: int, read_only: bool, serial: str | None = None) -> None:
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
        self.can_discard = not read_only and self._find_discard()
        self.has_own_serial = serial is not None
        self.serial = default_serial(found) if serial is None else serial.encode("ascii")

    @classmethod
    def open(cls, path: str, read_only: bool, serial: str | None = None) -> Disk:
        """Open and lock an image; HostError or BusyError says what is wrong with it."""
        fd = open_image(path, read_only)
        try:
            lock_image(path, fd, read_only)
            disk = cls(path, fd, read_only, serial)
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

    @classmethod
    def of(cls, image: ImageSpec, read_only: bool) -> Disk:
        """As open(), with all that is said of the image."""
        disk = cls.open(image.path, read_only, image.serial)
        try:
            disk.queues = image.queues
            disk.limit(image)
            if image.direct:
                disk.go_direct()
        except BaseException:
            disk.close()
            raise
        return disk

    def limit(self, image: ImageSpec) -> None:
        """Keep to the rates that are said of it."""
        said = {"iops": image.iops, "bandwidth": image.bandwidth}
        self.rates = {key: rate for key, rate in said.items() if rate is not None}
        if self.rates:
            from vmm._native.disk.limits import Limits

            self.limits = Limits(*[
                (rate.size, rate.refill_ms, rate.once) if rate else None for rate in said.values()
            ])  # fmt: skip

    def go_direct(self) -> None:
        """Past the page cache from now on; HostError where that cannot be."""
        from vmm.host.direct import turn_on

        self.alignment = turn_on(self.path, self.fd, self.size)
        # Sectors stay what they are, so that the partitions of an image do as well; but the guest
        # is told in which pieces it had better write.
        self.physical_block = max(self.physical_block, self.alignment[1])

    def _read_topology(self) -> None:
        self.logical_block = _ask(self.fd, BLKSSZGET)
        self.physical_block = _ask(self.fd, BLKPBSZGET)
        self.min_io = _ask(self.fd, BLKIOMIN)
        self.opt_io = _ask(self.fd, BLKIOOPT)

    def _find_discard(self) -> bool:
        """Whether discards can work here, found out by one that changes nothing."""
        try:
            if self.is_block_device:
                fcntl.ioctl(self.fd, BLKDISCARD, IMPOSSIBLE_RANGE)
            else:
                punch_hole(self.fd, (self.size + PAGE - 1) // PAGE * PAGE, PAGE)
        except OSError as error:
            return error.errno not in UNABLE
        return True

    def status(self) -> dict[str, object]:
        """Facts for `status`."""
        return {
            "path": self.path,
            "format": "raw",
            "serial": self.serial.decode("ascii"),
            "read_only": self.read_only,
            "size": self.size,
            "lock": "shared" if self.read_only else "exclusive",
            "direct": self.alignment is not None,
            "limits": {
                key: {"amount": rate.size, "refill_ms": rate.refill_ms, "once": rate.once}
                for key, rate in self.rates.items()
            },
        }

    def close(self) -> None:
        """Close the image, which releases its lock; idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def is_image(mode: int) -> bool:
    """Whether a file of this mode can be a disk image."""
    return stat.S_ISREG(mode) or stat.S_ISBLK(mode)


def open_image(path: str, read_only: bool, probe: bool = False) -> int:
    """A descriptor of an image that may be used so; VmmError says why it may not.

    ``probe``: it is only looked at, and not opened for writing: udev would look into a block
    device anew afterwards.
    """
    mode = os.O_RDONLY if read_only or probe else os.O_RDWR
    try:
        kind = os.stat(path).st_mode
        if not is_image(kind):
            raise ConfigError([f"{path} is neither a file nor a block device"])
        fd = os.open(path, mode | os.O_NONBLOCK * probe | os.O_CLOEXEC)
    except OSError as error:
        raise cannot_open(path, read_only, error) from error
    # Opening a device for writing goes well although it refuses each write.
    if not read_only and stat.S_ISBLK(kind) and _ask(fd, BLKROGET):
        os.close(fd)
        raise cannot_open(path, read_only, OSError(errno.EROFS, "the device is read-only"))
    return fd


def _ask(fd: int, request: int) -> int:
    """What an ioctl of block devices tells as a number."""
    return int(struct.unpack("I", fcntl.ioctl(fd, request, bytes(4)))[0])


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


def _open_system(image: ImageSpec) -> Disk:
    return Disk.of(image, read_only=False)


def open_disks(
    system: Sequence[ImageSpec],
    config: Sequence[ImageSpec],
    open_system: Callable[[ImageSpec], Disk] = _open_system,
) -> list[Disk]:
    """All images in the order of their slots: system disks read-write, config disks read-only."""
    disks: list[Disk] = []
    try:
        for image in system:
            disks.append(open_system(image))
        for image in config:
            disks.append(Disk.of(image, read_only=True))
    except BaseException:
        for disk in disks:
            disk.close()
        raise
    make_serials_distinct(disks)
    return disks


def make_serials_distinct(disks: Sequence[Disk]) -> None:
    """Where two would be the same (numbers without a gap, cloned volumes), the later is exact."""
    taken = {disk.serial for disk in disks if disk.has_own_serial}
    for disk in disks:
        if not disk.has_own_serial:
            if disk.serial in taken:
                disk.serial = exact_serial(os.fstat(disk.fd))
            taken.add(disk.serial)
