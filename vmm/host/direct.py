"""Direct I/O on images, past the host's page cache: what a file system asks of it, or refuses."""

from __future__ import annotations

import errno
import fcntl
import os

from vmm._native.host.posix import dio_alignment
from vmm._native.memory.guestmem import GuestMemory
from vmm.errors import HostError

# Of the buffer that the workers have for what is not aligned (vmm/_native/disk/direct.pxd): half.
BLOCK_MAX = 32768
SECTOR = 512
PAGE = 4096
REMEDY = "leave direct=on out, or put the image where direct I/O works (ext4, XFS, a block device)"


def turn_on(path: str, fd: int, size: int) -> tuple[int, int]:
    """From now on ``fd`` reads and writes directly; the alignments (of buffers, of the file).

    HostError, and nothing changed, where the file system or this image's size refuses it.
    """
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT)
    except OSError as error:
        raise refused(path, f"its file system has none ({error.strerror})") from None
    try:
        memory, file = alignment(path, fd)
        if size % file:
            raise HostError(
                f"no direct I/O on {path}: its size {size} is no multiple of {file} bytes, "
                "the blocks that it is written in there",
                f"leave direct=on out, or make it larger: truncate -s %{file} {path}",
            )
    except BaseException:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags)
        raise
    return memory, file


def refused(path: str, why: str) -> HostError:
    """The error for an image that cannot have it."""
    return HostError(f"no direct I/O on {path}: {why}", REMEDY)


def alignment(path: str, fd: int) -> tuple[int, int]:
    """(of buffers, of places in the file) in bytes, powers of two, asked for or found by trying."""
    try:
        told = dio_alignment(fd)
    except OSError:
        told = None
    memory, file = told or probe(path, fd)
    if not file:
        raise refused(path, "its file system does not do it for this file")
    if max(memory, file) > BLOCK_MAX:
        raise refused(path, f"it asks for blocks of {max(memory, file)} bytes")
    # Sectors are what the guest has; less would never be used.
    return max(memory, 1), max(file, SECTOR)


def probe(path: str, fd: int) -> tuple[int, int]:
    """As the kernel does not tell: the smallest alignments with which a read goes well."""
    # Memory that begins at a page; the static executable has no mmap module.
    buffer = GuestMemory([(0, 2 * BLOCK_MAX)], thp=False)
    try:
        return _smallest(path, fd, buffer.view(0, 2 * BLOCK_MAX))
    finally:
        buffer.close()


def _smallest(path: str, fd: int, room: memoryview) -> tuple[int, int]:
    with room as view:
        file = SECTOR
        while not _reads(fd, view[:file]):
            file *= 2
            if file > BLOCK_MAX:
                raise refused(path, "no read of it is aligned well enough")
        memory = SECTOR
        while memory < PAGE and not _reads(fd, view[memory : memory + file]):
            memory *= 2
    return memory, file


def _reads(fd: int, into: memoryview) -> bool:
    try:
        os.preadv(fd, [into], 0)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return False
    finally:
        into.release()
    return True
