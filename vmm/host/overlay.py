"""Disks above images: what the guest writes goes to memory or to a sparse file of its own.

The file lies beside nothing: it holds the clusters that were written at their own places, then one
page that says what it is, then a bit for each cluster. It belongs to the image as it was.
"""

from __future__ import annotations

import os
import stat
import struct

from vmm._native.disk.layer import CLUSTER_BYTES, Layer, bits_bytes
from vmm._native.disk.overlay import Overlay, merge
from vmm._native.host.posix import ofd_lock
from vmm.errors import BusyError, ConfigError, HostError
from vmm.host.disk import SECTOR, Disk, open_disks
from vmm.log.hub import get_logger

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm.settings.images import ImageSpec

log = get_logger(__name__)

MAGIC = b"VMM-OVER"
VERSION = 1
PAGE = 4096
# Magic, version, bytes of a cluster, bytes of the disk, the image's mtime in ns (0: not known).
HEADER = struct.Struct("<8sIIQQ")


class OverlayDisk(Disk):
    """A writable disk above an image that is only read; the surface of Disk.

    ``overlay`` is where the guest's reads and writes go. The image is locked as a reader locks it.
    """

    overlay: Overlay

    def __init__(self, base: Disk, path: str | None, layers: Sequence[Layer] = ()) -> None:
        vars(self).update(vars(base))
        self.read_only = False
        self.can_discard = True
        self.overlay_path = path
        self._bytes = base.capacity * SECTOR
        self._named: Layer | None = None
        if path is not None:
            self._named = _open_file(path, self._bytes, _mtime(base.fd))
        self.overlay = Overlay(base.fd, self._bytes, self._make_layer, layers, self._named)

    @classmethod
    def above(cls, image: str, path: str | None = None, serial: str | None = None) -> OverlayDisk:
        """Open ``image`` for reading, with an overlay in memory or in the file ``path``.

        A file that is there goes on with what it has. VmmError says what is wrong with either.
        """
        base = Disk.open(image, read_only=True, serial=serial)
        try:
            return cls(base, path)
        except BaseException:
            base.close()
            raise

    def fork(self, layers: Sequence[Layer]) -> OverlayDisk:
        """Another disk from ``layers`` of freeze(), with an overlay in memory of its own."""
        base = Disk.__new__(Disk)
        vars(base).update({name: value for name, value in vars(self).items() if name != "overlay"})
        base.fd = os.dup(self.fd)
        try:
            return OverlayDisk(base, None, layers)
        except BaseException:
            base.close()
            raise

    def new_layer(self) -> Layer:
        """An empty layer in memory, for Layer.fill() and then Layer.freeze()."""
        return _memory_layer(self._bytes)

    def _make_layer(self) -> Layer:
        """An empty one where the overlay is: in memory, or unnamed beside its file."""
        if self.overlay_path is None:
            return _memory_layer(self._bytes)
        folder = os.path.dirname(self.overlay_path) or "."
        return _layer(os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600), self._bytes)

    def status(self) -> dict[str, object]:
        """Facts for `status`."""
        written = sum(layer.written for layer in (*self.overlay.layers, self.overlay.top))
        return {
            **super().status(),
            "lock": "shared",
            "overlay": self.overlay_path or "memory",
            "overlay_bytes": written * CLUSTER_BYTES,
        }

    def close(self) -> None:
        """Close both; an overlay in a file has all that was written then. Idempotent."""
        if self.fd >= 0:
            try:
                self._keep()
            finally:
                super().close()
                # What shares no layer with others is closed with the last reference.
                self._named = None
                del self.overlay

    def _keep(self) -> None:
        """After freeze() the file lacks what came later: a new one takes its place."""
        path, named = self.overlay_path, self._named
        if path is None or named is None:
            return
        layers = [*self.overlay.layers, self.overlay.top]
        if layers == [named]:
            os.fdatasync(named.fd)
            return
        fresh = f"{path}.new"
        if os.path.lexists(fresh):
            os.unlink(fresh)
        merged = _open_file(fresh, self._bytes, _mtime(self.fd))
        merge(layers, merged)
        os.fdatasync(merged.fd)
        os.replace(fresh, path)


def open_overlays(system: Sequence[ImageSpec], config: Sequence[ImageSpec]) -> list[Disk]:
    """As open_disks(), with system disks that keep what is written in memory."""
    return open_disks(system, config, _open_above)


def _open_above(image: ImageSpec) -> OverlayDisk:
    disk = OverlayDisk.above(image.path, serial=image.serial)
    disk.queues = image.queues
    disk.limit(image)
    return disk


def _memory_layer(size: int) -> Layer:
    return _layer(os.memfd_create("disk-overlay", os.MFD_CLOEXEC), size)


def _layer(fd: int, size: int) -> Layer:
    try:
        return Layer(fd, size)
    except BaseException:
        os.close(fd)
        raise


def _mtime(fd: int) -> int:
    """Of a file; a device's says nothing of its content."""
    found = os.fstat(fd)
    return found.st_mtime_ns if stat.S_ISREG(found.st_mode) else 0


def _open_file(path: str, size: int, mtime: int) -> Layer:
    """The layer in a file, made anew where there is none."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise ConfigError(
            [f"cannot open the overlay {path}: {error.strerror} (check the path and its folder)"]
        ) from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ConfigError([f"the overlay {path} is no file (give another path)"])
        _lock(path, fd)
        header_at = (size + CLUSTER_BYTES - 1) // CLUSTER_BYTES * CLUSTER_BYTES
        if os.fstat(fd).st_size:
            _check_header(path, fd, header_at, size, mtime)
        else:
            _write_header(path, fd, header_at, size, mtime)
        return Layer(fd, size, header_at + PAGE)
    except BaseException:
        os.close(fd)
        raise


def _lock(path: str, fd: int) -> None:
    try:
        ofd_lock(fd, True, 0, 0)
    except BlockingIOError:
        raise BusyError(
            f"the overlay {path} is in use", "stop what uses it, or give another file"
        ) from None
    except OSError as error:
        log.warning(f"{path}: this file system cannot lock it ({error.strerror}); not protected")


def _write_header(path: str, fd: int, at: int, size: int, mtime: int) -> None:
    try:
        # The bits are mapped: a hole there would end us where the file system has no space left.
        os.posix_fallocate(fd, at, PAGE + bits_bytes(size))
        os.pwrite(fd, HEADER.pack(MAGIC, VERSION, CLUSTER_BYTES, size, mtime), at)
    except OSError as error:
        raise HostError(
            f"cannot write the overlay {path}: {error.strerror}", "give it a place with more space"
        ) from error


def _check_header(path: str, fd: int, at: int, size: int, mtime: int) -> None:
    found = os.pread(fd, HEADER.size, at)
    whole = os.fstat(fd).st_size == at + PAGE + bits_bytes(size)
    if not whole or len(found) != HEADER.size or found[: len(MAGIC)] != MAGIC:
        raise ConfigError([f"{path} is no overlay of a disk of {size} bytes (give another file)"])
    _, version, cluster, told, then = HEADER.unpack(found)
    if (version, cluster, told) != (VERSION, CLUSTER_BYTES, size):
        raise ConfigError(
            [
                f"the overlay {path} is of version {version}, clusters of {cluster} bytes, a disk "
                f"of {told} bytes: {VERSION}, {CLUSTER_BYTES} and {size} are needed"
            ]
        )
    if then != mtime:
        raise ConfigError(
            [f"the image under the overlay {path} was written since (give it another file)"]
        )
