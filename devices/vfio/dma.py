"""What both of VFIO's interfaces have in common: guest RAM, and device memory, at guest addresses.

Source: Documentation/driver-api/vfio.rst.
"""

from __future__ import annotations

import errno
import time

from vmm.errors import HostError
from vmm.log.hub import get_logger
from vmm.memory import no_progress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from devices.vfio.kernel import VfioKernel
    from vmm._native.kvm.vm import KvmVfio
    from vmm._native.memory.guestmem import GuestMemory
    from vmm._native.vfio.ioctls import VfioDevice
    from vmm.host.pci import HostDevice
    from vmm.memory import Progress

log = get_logger(__name__)

# RAM is mapped in pieces, so that the progress of a large guest can be told.
CHUNK_BYTES = 4 << 30
PROGRESS_SECONDS = 2.0


class DmaDomain:
    """One set of DMA mappings for all devices of a VM. Control thread only, but for device memory,
    which comes and goes under the bus's lock (PciRoot).

    close() comes after the devices are closed. ``progress`` is called before each piece of RAM is
    pinned, which may take long.
    """

    backend = ""
    # How the memory that devices reach counts as locked (getrlimit(2), RLIMIT_MEMLOCK).
    accounting = ""

    def __init__(self, kvm: KvmVfio, kernel: VfioKernel, progress: Progress = no_progress) -> None:
        self._kvm = kvm
        self._progress = progress
        self._kernel = kernel
        self._ranges: list[tuple[int, int]] = []

    def open_device(self, host: HostDevice, memory: GuestMemory) -> VfioDevice:
        """The device, ready to be used; the first one brings all of RAM's mappings."""
        raise NotImplementedError

    def close(self) -> None:
        """Give everything back; idempotent."""
        raise NotImplementedError

    # --- how it is done ---

    def _iova_ranges(self) -> list[tuple[int, int]]:
        raise NotImplementedError

    def _map_dma(self, hva: int, iova: int, size: int) -> None:
        raise NotImplementedError

    def _unmap_dma(self, iova: int, size: int) -> None:
        raise NotImplementedError

    # --- RAM ---

    def _map_ram(self, memory: GuestMemory) -> None:
        """All RAM at its guest addresses. It is faulted in and pinned, which takes its time."""
        self._check_ranges(memory)
        started = told = time.monotonic()
        total = memory.size
        done = 0
        for gpa, size, hva in memory.slots:
            for offset in range(0, size, CHUNK_BYTES):
                length = min(CHUNK_BYTES, size - offset)
                self._progress("pinning", done, total)
                try:
                    self._map_dma(hva + offset, gpa + offset, length)
                except OSError as error:
                    raise HostError(
                        f"cannot map guest RAM [{gpa + offset:#x}, {gpa + offset + length:#x}) "
                        f"for devices: {error}",
                        f"{total} bytes must be locked{self.accounting}: raise LimitMEMLOCK= "
                        "(ulimit -l)",
                    ) from error
                done += length
                if time.monotonic() - told > PROGRESS_SECONDS:
                    told = time.monotonic()
                    log.info(f"pinned {done >> 20} of {total >> 20} MiB of guest RAM")
        seconds = time.monotonic() - started
        rate = total / (1 << 30) / max(seconds, 1e-9)
        log.info(
            f"guest RAM mapped for devices by {self.backend}: {total >> 20} MiB in {seconds:.3f} s "
            f"({rate:.1f} GiB/s)"
        )

    def _check_ranges(self, memory: GuestMemory) -> None:
        self._ranges = self._iova_ranges()
        for gpa, size in memory.regions:
            if not self._can_map(gpa, size):
                raise HostError(
                    f"guest RAM [{gpa:#x}, {gpa + size:#x}) lies outside of what this host's "
                    f"IOMMU can map: {self._allowed()}",
                    "lower size in VLLMD_HYPERVISOR_MEMORY_CONFIG",
                )

    def _can_map(self, gpa: int, size: int) -> bool:
        inside = [first <= gpa and gpa + size - 1 <= last for first, last in self._ranges]
        return any(inside) or not inside

    def _allowed(self) -> str:
        return ", ".join([f"[{first:#x}, {last:#x}]" for first, last in self._ranges])

    # --- device memory ---

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """(first, last) of what the IOMMU can map, once a device is open; empty: not known."""
        return self._ranges

    def map_device_memory(self, hva: int, gpa: int, size: int) -> None:
        """Let devices reach device memory; OSError when the IOMMU or the kernel does not."""
        if not self._can_map(gpa, size):
            raise OSError(errno.ERANGE, f"this host's IOMMU can map {self._allowed()}")
        self._map_dma(hva, gpa, size)

    def unmap_device_memory(self, gpa: int, size: int) -> None:
        """Undo it."""
        self._unmap_dma(gpa, size)
