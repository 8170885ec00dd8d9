"""Serials of disks, as the guest reads them: 20 characters that stay with an image.

A file is known by device and inode. A block device's numbers change from boot to boot, so what
its own hardware or layer calls it comes first.
Source: Documentation/ABI (sysfs-block, sysfs-block-dm, sysfs-class-nvme), scsi_sysfs.c.
"""

from __future__ import annotations

import os
import stat

from vmm.host.files import HOST

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmm.host.files import Host

SERIAL_BYTES = 20  # VIRTIO_BLK_ID_BYTES
SYS_BLOCK = "/sys/dev/block"
# Device mapper, NVMe, SCSI and ATA, virtio, md.
NAMES = ("dm/uuid", "wwid", "device/wwid", "serial", "md/uuid")


def default_serial(found: os.stat_result, host: Host = HOST) -> bytes:
    """For an image without a serial of its own.

    A file's numbers as Cloud Hypervisor writes them, or where they do not fit their digest.
    """
    if stat.S_ISBLK(found.st_mode):
        return digest(block_identity(found.st_rdev, host))
    text = f"{found.st_dev}{found.st_rdev}{found.st_ino}".encode("ascii")
    return text if len(text) <= SERIAL_BYTES else exact_serial(found)


def exact_serial(found: os.stat_result) -> bytes:
    """One that no other file of this host has now."""
    return digest(f"{found.st_dev},{found.st_rdev},{found.st_ino}")


def digest(text: str) -> bytes:
    """A name of any length in 20 characters."""
    from _blake2 import blake2s

    data = text.encode("utf-8", "surrogateescape")
    return str(blake2s(data, digest_size=SERIAL_BYTES // 2).hexdigest()).encode("ascii")


def block_identity(number: int, host: Host) -> str:
    """What a block device is called, as lastingly as sysfs tells."""
    folder = f"{SYS_BLOCK}/{os.major(number)}:{os.minor(number)}"
    for name in NAMES:
        text = host.text(f"{folder}/{name}")
        if text:
            return text
    partition = host.text(f"{folder}/partition")
    disk = host.device_number(f"{folder}/../dev") if partition else None
    if disk is not None:
        return f"{block_identity(disk, host)} partition {partition}"
    backing = host.text(f"{folder}/loop/backing_file")
    if backing:
        return f"{backing} from {host.text(f'{folder}/loop/offset')}"
    return f"{os.major(number)}:{os.minor(number)}"
