"""A disk of ours with its driver in C (diskrig.c): what the device can do, without a guest."""

from __future__ import annotations

import ctypes
import os
import subprocess
import time
from pathlib import Path
from typing import Any

from devices.virtio.block import Block
from devices.virtio.device import F_EVENT_IDX, F_INDIRECT_DESC, QueueConfig
from vmm._native.memory.guestmem import GuestMemory
from vmm.host.disk import Disk

SIZE = 128
QUEUE_GPA, SLOTS_GPA, DATA_GPA = 0x1000, 0x10000, 0x100000
PIECE = 65536


class Parameters(ctypes.Structure):
    """struct rig of diskrig.c."""

    _fields_ = [
        ("ram", ctypes.c_void_p),
        *[(name, ctypes.c_uint64) for name in (
            "desc_gpa", "driver_gpa", "device_gpa", "slots_gpa", "data_gpa", "bytes", "seed")],
        *[(name, ctypes.c_uint32) for name in (
            "block", "piece", "depth", "size", "writes", "sequential")],
        ("kick", ctypes.c_int), ("call", ctypes.c_int), ("seconds", ctypes.c_double),
        ("halt_poll", ctypes.c_double),
        ("avail", ctypes.c_uint16), ("seen", ctypes.c_uint16),
        *[(name, ctypes.c_uint64) for name in ("done", "errors", "kicks", "sleeps")],
        ("took", ctypes.c_double),
    ]  # fmt: skip


def library(folder: Path) -> ctypes.CDLL:
    """diskrig.c as a shared object."""
    built = folder / "diskrig.so"
    source = Path(__file__).with_name("diskrig.c")
    subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-o", built, source], check=True)
    found = ctypes.CDLL(str(built))
    found.rig_slot_bytes.restype = ctypes.c_size_t
    return found


class DiskRig:
    """``disk`` with one queue, and a driver of it. close() closes the disk as well."""

    def __init__(self, lib: ctypes.CDLL, disk: Disk, data_bytes: int = 32 << 20) -> None:
        self.lib = lib
        self.memory = GuestMemory([(0, DATA_GPA + data_bytes)])
        view = self.memory.view(0, DATA_GPA + data_bytes)
        self._base = ctypes.addressof(ctypes.c_char.from_buffer(view))
        self.kick, self.call = os.eventfd(0), os.eventfd(0)
        self.disk = disk
        self.block = Block("rig", self.memory, disk, 1)
        driver = QUEUE_GPA + 16 * SIZE
        device = driver + 8 + 2 * SIZE
        queue = QueueConfig(0, SIZE, QUEUE_GPA, driver, device, self.kick, self.call)
        self.block.activate(F_EVENT_IDX | F_INDIRECT_DESC | 1 << 9, [queue], -1)
        self.worker = self.block.workers()[0][1]
        self._at = Parameters(
            ram=self._base, desc_gpa=QUEUE_GPA, driver_gpa=driver, device_gpa=device,
            slots_gpa=SLOTS_GPA, data_gpa=DATA_GPA, size=SIZE, kick=self.kick, call=self.call,
        )  # fmt: skip

    def run(self, seconds: float, **how: Any) -> dict[str, float]:
        """Requests for so long, as the fields of struct rig say; OSError when one fails.

        Requests and MB per second; CPU in us of each, of the worker and of the driver with its
        looking; doorbells, and waits that slept, of each.
        """
        at = self._at
        how.setdefault("bytes", self.disk.size)
        how.setdefault("piece", min(how["block"], PIECE))
        for name, value in how.items():
            setattr(at, name, value)
        at.seconds = seconds
        spent, driver = time.process_time(), time.thread_time()
        self.lib.rig_run(ctypes.byref(at))
        spent, driver = time.process_time() - spent, time.thread_time() - driver
        if at.errors:
            raise OSError(f"{at.errors} requests failed")
        return {
            "iops": at.done / at.took,
            "mbps": at.done * at.block / at.took / 1e6,
            "worker_us": (spent - driver) * 1e6 / at.done,
            "driver_us": driver * 1e6 / at.done,
            "kicks": at.kicks / at.done,
            "sleeps": at.sleeps / at.done,
        }

    def close(self) -> None:
        """End the worker, and give all back."""
        self.block.close()
        self.disk.close()
        os.close(self.kick)
        os.close(self.call)
