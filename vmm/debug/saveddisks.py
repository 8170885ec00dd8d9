"""The disks of a snapshot in its file: which image, as it was; a read-only one so far."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from vmm.errors import HostError, StateError
from vmm.host.disk import Disk

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm._native.disk.layer import Layer


class SavedDisk:
    """One disk of a snapshot: the image, open, and what was written above it."""

    def __init__(self, disk: Disk, layers: Sequence[Layer]) -> None:
        self.disk = disk
        self.layers = tuple(layers)


def disks_to(disks: Sequence[SavedDisk]) -> list[dict[str, object]]:
    """The plain values of a snapshot's disks."""
    return [_disk_to(saved) for saved in disks]


def _disk_to(saved: SavedDisk) -> dict[str, object]:
    disk = saved.disk
    if saved.layers:
        raise HostError(f"a snapshot with an overlay above {disk.path} cannot be saved", "fork it")
    return {"path": os.path.abspath(disk.path), "sectors": disk.capacity, "serial": disk.serial}


def disks_from(found: Any) -> list[SavedDisk]:
    """The disks, opened; StateError or what opening says."""
    if type(found) is not list:
        raise StateError("disks: a list is needed", "save the snapshot anew")
    return [_disk_from(number, state) for number, state in enumerate(found)]


def _disk_from(number: int, state: Any) -> SavedDisk:
    disk = Disk.open(state["path"], read_only=True, serial=state["serial"])
    return SavedDisk(disk, ())
