"""Formats of disk images that are not raw, known by their magic numbers.

Attached as it is, such a file shows the guest its headers in place of the disk, and the guest's
first write ruins it. LUKS is left out: a guest that encrypts its disk makes it look so.
Sources: QEMU's docs/interop and block/*.c (probe functions).
"""

from __future__ import annotations

import os

HEAD_BYTES = 512
FOOTER_BYTES = 512
# (offset in the first 512 bytes, magic, qemu-img's name).
MAGICS = (
    (0, b"QFI\xfb\0\0\0\1", "qcow"),
    (0, b"QFI\xfb", "qcow2"),
    (0, b"QED\0", "qed"),
    (0, b"KDMV", "vmdk"),
    (0, b"COWD", "vmdk"),
    (0, b"# Disk DescriptorFile", "vmdk"),
    (0, b"vhdxfile", "vhdx"),
    (0, b"conectix", "vpc"),
    (64, b"\x7f\x10\xda\xbe", "vdi"),
    (0, b"WithoutFreeSpace", "parallels"),
    (0, b"WithouFreSpacExt", "parallels"),
    (0, b"Bochs Virtual HD Image", "bochs"),
)
# The same for the last 512 bytes: a VHD of fixed size has nothing else.
FOOTER_MAGICS = ((b"conectix", "vpc"), (b"koly", "dmg"))


def foreign_format(path: str) -> str | None:
    """qemu-img's name of the format that the file has, None for raw. OSError when unreadable."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        head = os.pread(fd, HEAD_BYTES, 0)
        for offset, magic, name in MAGICS:
            if head.startswith(magic, offset):
                return name
        size = os.lseek(fd, 0, os.SEEK_END)
        if size <= HEAD_BYTES:
            return None
        foot = os.pread(fd, FOOTER_BYTES, size - FOOTER_BYTES)
        for magic, name in FOOTER_MAGICS:
            if foot.startswith(magic):
                return name
        return None
    finally:
        os.close(fd)


def conversion(path: str, name: str) -> str:
    """The command that makes a raw image of it, beside it."""
    target = os.path.splitext(path)[0] + ".raw"
    if os.path.lexists(target):
        target = path + ".raw"
    return f"qemu-img convert -f {name} -O raw {_quoted(path)} {_quoted(target)}"


def _quoted(word: str) -> str:
    """As a shell reads it back."""
    if all(char.isalnum() or char in "@%+=:,./-_" for char in word) and word.isascii():
        return word
    return "'" + word.replace("'", "'\"'\"'") + "'"
