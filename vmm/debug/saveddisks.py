"""The disks of a snapshot, and in its file: which image, and what was written above it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from vmm._native.disk.overlay import merge
from vmm.errors import StateError
from vmm.host.disk import Disk
from vmm.host.overlay import OverlayDisk
from vmm.layout import DISK_QUEUES_MAX
from vmm.light.state import data, int_in, many, maybe, read_state, unsigned

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmm._native.disk.layer import Layer

# Of one disk in a file: 65536 extents are 4 GiB at the least.
EXTENTS_MAX = 1 << 20
CHUNK = 4 << 20
# What an OverlayDisk has besides what its image is.
OVERLAY_FIELDS = ("overlay", "overlay_path", "_bytes", "_named")


class SavedDisk:
    """One disk of a snapshot: the image, open for its own, and what was written above it.

    ``layers`` is None for a disk that the guest only reads.
    """

    def __init__(self, disk: Disk, layers: Sequence[Layer] | None) -> None:
        self.image = _twin(disk)
        self.layers = None if layers is None else tuple(layers)

    def __del__(self) -> None:
        if hasattr(self, "image"):
            self.image.close()

    def open(self) -> Disk:
        """Another disk with this content; what is written to it goes to memory of its own."""
        base = _twin(self.image)
        if self.layers is None:
            return base
        try:
            return OverlayDisk(base, None, self.layers)
        except BaseException:
            base.close()
            raise


def _twin(disk: Disk) -> Disk:
    """The image alone, with a descriptor of its own; it is locked as long as either lives."""
    twin = Disk.__new__(Disk)
    vars(twin).update(
        {name: value for name, value in vars(disk).items() if name not in OVERLAY_FIELDS}
    )
    twin.fd = os.dup(disk.fd)
    return twin


def disks_to(disks: Sequence[SavedDisk]) -> tuple[list[dict[str, object]], list[Layer]]:
    """The plain values of a snapshot's disks, and the layers whose extents follow RAM."""
    values: list[dict[str, object]] = []
    layers = []
    for saved in disks:
        disk = saved.image
        extents: list[list[int]] | None = None
        if saved.layers is not None:
            layer = _merged(saved)
            extents = [[offset, length] for offset, length in layer.extents()]
            layers.append(layer)
        values.append({
            "version": 1, "path": os.path.abspath(disk.path).encode(), "sectors": disk.capacity,
            "serial": bytes(disk.serial), "queues": disk.queues, "extents": extents,
        })  # fmt: skip
    return values, layers


def _merged(saved: SavedDisk) -> Layer:
    above = saved.open()
    assert isinstance(above, OverlayDisk)
    try:
        return merge(saved.layers or (), above.new_layer())
    finally:
        above.close()


def write_layers(fd: int, at: int, layers: Sequence[Layer]) -> None:
    """The bytes of all extents, one behind the other, from ``at`` on."""
    for layer in layers:
        for offset, length in layer.extents():
            for start, size in _pieces(offset, length):
                data_ = memoryview(os.pread(layer.fd, size, start))
                while data_:
                    done = os.pwrite(fd, data_, at)
                    data_ = data_[done:]
                    at += done


def _pieces(offset: int, length: int) -> Iterator[tuple[int, int]]:
    for start in range(offset, offset + length, CHUNK):
        yield start, min(CHUNK, offset + length - start)


def disks_from(found: Any, fd: int, at: int) -> list[SavedDisk]:
    """The disks, opened, with what was written above them, which is in ``fd`` from ``at`` on.

    StateError, or what opening says.
    """
    if type(found) is not list:
        raise StateError("disks: a list is needed", "save the snapshot anew")
    disks = []
    for number, state in enumerate(found):
        known = _checked(f"disk {number}", state)
        saved, at = _disk_from(known, fd, at)
        disks.append(saved)
    if at != os.fstat(fd).st_size:
        raise StateError(
            f"{os.fstat(fd).st_size} bytes long, {at} are needed", "save the snapshot anew"
        )
    return disks


def _checked(name: str, state: object) -> dict[str, Any]:
    extent = many(unsigned(63), 2)
    fields = {
        "path": data(1, 4096), "sectors": unsigned(54), "serial": data(0, 20),
        "queues": maybe(int_in(1, DISK_QUEUES_MAX)), "extents": maybe(many(extent, 0, EXTENTS_MAX)),
    }  # fmt: skip
    if type(state) is dict:
        # Written before a disk's queues could be chosen.
        state = {"queues": None, **state}
    return read_state(name, state, fields)


def _disk_from(known: dict[str, Any], fd: int, at: int) -> tuple[SavedDisk, int]:
    path = os.fsdecode(known["path"])
    disk = Disk.open(path, read_only=True, serial=known["serial"].decode("ascii"))
    disk.queues = known["queues"]
    try:
        if disk.capacity != known["sectors"]:
            raise StateError(
                f"{path} has {disk.capacity} sectors, {known['sectors']} when it was saved",
                "put the image of then there",
            )
        if known["extents"] is None:
            return SavedDisk(disk, None), at
        layer = OverlayDisk(disk, None).new_layer()
        at = _fill(layer, path, known["extents"], fd, at)
        layer.freeze()
        return SavedDisk(disk, (layer,)), at
    finally:
        disk.close()


def _fill(layer: Layer, path: str, extents: list[list[int]], fd: int, at: int) -> int:
    """Read the extents from ``at`` on; where they end."""
    for offset, length in extents:
        if offset + length > layer.size:
            raise StateError(f"{path}: an extent at {offset:#x} behind its end", "save it anew")
        for start, size in _pieces(offset, length):
            piece = os.pread(fd, size, at)
            if len(piece) != size:
                raise StateError(f"{path}: its extents are cut short", "save the snapshot anew")
            layer.fill(start, piece)
            at += size
    return at
