"""VFIO that fails on purpose: the kernel's own objects with single calls overridden.

Only a test makes these and hands them to build_machine(); nothing in the environment can.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from pathlib import Path
from typing import Any

from devices.vfio.kernel import VfioKernel
from tests.support.process import open_descriptors
from vmm._native.host.fd import IoctlError
from vmm._native.vfio import ioctls as vfio
from vmm._native.vfio.ioctls import VfioContainer, VfioDevice, VfioGroup
from vmm._native.vfio.iommufd import CdevDevice, Iommufd

ONES = {size: (1 << 8 * size) - 1 for size in (1, 2, 4, 8)}
BAR0 = 0x10


class Faults:
    """What fails. ``map_dma``: the number of the DMA mapping that does, from 1 on.

    ``reads_ones``: "" | "config" (all of configuration space) | "bar" (a probed BAR's register).
    ``vectors``: how many MSI-X vectors the host gives at once.
    """

    def __init__(
        self,
        map_dma: int = 0,
        reset: bool = False,
        reads_ones: str = "",
        vectors: int = 0,
        mmap: bool = False,
    ) -> None:
        self.map_dma = map_dma
        self.reset = reset
        self.reads_ones = reads_ones
        self.vectors = vectors
        self.mmap = mmap
        self.mappings = 0
        self.happened: list[str] = []

    def before_mapping(self, name: str) -> None:
        self.mappings += 1
        if self.mappings == self.map_dma:
            self.happened.append(name)
            raise IoctlError(errno.ENOMEM, name)


class FaultyContainer(VfioContainer):
    def __init__(self, fd: int, faults: Faults) -> None:
        self.faults = faults

    def map_dma(self, hva: int, iova: int, size: int) -> None:
        self.faults.before_mapping("VFIO_IOMMU_MAP_DMA")
        super().map_dma(hva, iova, size)


class FaultyIommufd(Iommufd):
    def __init__(self, fd: int, faults: Faults) -> None:
        self.faults = faults

    def ioas_map(self, ioas: int, hva: int, iova: int, size: int) -> None:
        self.faults.before_mapping("IOMMU_IOAS_MAP")
        super().ioas_map(ioas, hva, iova, size)


class FaultyGroup(VfioGroup):
    def __init__(self, fd: int, faults: Faults) -> None:
        self.faults = faults

    def get_device_fd(self, bdf: str) -> VfioDevice:
        return adopt(FaultyDevice, super().get_device_fd(bdf), self.faults)


class DeviceFaults(VfioDevice):
    """What fails in a device, however it was opened."""

    def __init__(self, fd: int, faults: Faults) -> None:
        self.faults = faults
        self.config = -1

    def get_info(self) -> tuple[int, int, int]:
        flags, regions, irqs = super().get_info()
        return flags | (vfio.FLAG_RESET if self.faults.reset else 0), regions, irqs

    def reset(self) -> None:
        if self.faults.reset:
            self.faults.happened.append("reset")
            raise IoctlError(errno.ENOTTY, "VFIO_DEVICE_RESET")
        super().reset()

    def read(self, offset: int, size: int) -> int:
        value = super().read(offset, size)
        if self.config < 0:
            self.config = self.get_region_info(vfio.CONFIG_REGION)[2]
        register = offset - self.config
        kind = self.faults.reads_ones
        if kind == "config" or (kind == "bar" and register == BAR0 and self.probed):
            self.faults.happened.append("read")
            return ONES[size]
        return value

    probed = False

    def write(self, offset: int, value: int, size: int) -> None:
        self.probed = value == ONES[4]
        super().write(offset, value, size)

    def trigger_eventfds(self, index: int, fds: Any) -> int:
        if index == vfio.MSIX and 0 < self.faults.vectors < len(fds):
            # What Linux does: it tells how many there are, and switches none on.
            self.faults.happened.append("vectors")
            return self.faults.vectors
        return super().trigger_eventfds(index, fds)

    def map(self, offset: int, size: int) -> Any:
        if self.faults.mmap:
            self.faults.happened.append("mmap")
            raise IoctlError(errno.EINVAL, "mmap of a BAR")
        return super().map(offset, size)

    def vanish(self) -> None:
        """From now on its file answers nothing, as that of a device that was pulled out."""
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, self.fd)
        os.close(nothing)


class FaultyDevice(DeviceFaults):
    pass


class FaultyCdev(DeviceFaults, CdevDevice):
    pass


def adopt(kind: Any, real: Any, faults: Faults) -> Any:
    """An object of ``kind`` in place of ``real``, with its file."""
    made = kind(os.dup(real.fd), faults)
    real.close()
    return made


class FaultyKernel(VfioKernel):
    """Everything it opens has these faults."""

    def __init__(self, faults: Faults) -> None:
        self.faults = faults

    def container(self) -> VfioContainer:
        return adopt(FaultyContainer, super().container(), self.faults)  # type: ignore[no-any-return]

    def group(self, path: str) -> VfioGroup:
        return adopt(FaultyGroup, super().group(path), self.faults)  # type: ignore[no-any-return]

    def iommufd(self) -> Iommufd:
        return adopt(FaultyIommufd, super().iommufd(), self.faults)  # type: ignore[no-any-return]

    def cdev(self, path: str) -> CdevDevice:
        return adopt(FaultyCdev, super().cdev(path), self.faults)  # type: ignore[no-any-return]


class Holdings:
    """What this process has: open files and mapped files by name, bytes of other mappings."""

    def __init__(self) -> None:
        self.files: Counter[str] = Counter()
        for name in open_descriptors().values():
            self.files[name.split(":")[0] if name.startswith(("pipe:", "socket:")) else name] += 1
        self.mapped: Counter[str] = Counter()
        self.anonymous = 0
        for line in Path("/proc/self/maps").read_text().splitlines():
            fields = line.split(None, 5)
            start, end = (int(part, 16) for part in fields[0].split("-"))
            if len(fields) > 5 and ".so" in fields[5]:
                continue  # a library is loaded when it is first used, and stays
            if len(fields) > 5 and not fields[5].startswith("["):
                self.mapped[fields[5]] += 1
            elif fields[1] != "---p":  # address space that malloc(3) keeps for later is no memory
                self.anonymous += end - start

    def more_than(self, before: Holdings, slack: int = 4 << 20) -> str:
        """What is there now and was not before; empty when nothing is.

        ``slack``: bytes by which heaps and kept thread stacks may have grown.
        """
        grown = [f"files {dict(self.files - before.files)}"] if self.files - before.files else []
        if self.mapped - before.mapped:
            grown.append(f"mappings {dict(self.mapped - before.mapped)}")
        if self.anonymous > before.anonymous + slack:
            grown.append(f"{self.anonymous - before.anonymous} bytes of memory")
        return "; ".join(grown)
