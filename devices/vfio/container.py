"""The IOMMU domain of one VM: groups in one container, guest RAM mapped where the guest sees it.

Source: Documentation/driver-api/vfio.rst (type 1 version 2).
"""

from __future__ import annotations

import errno
import time

from vmm._native import vfio
from vmm.errors import BusyError, HostError
from vmm.log import get_logger
from vmm.memory import no_progress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmm._native.guestmem import GuestMemory
    from vmm._native.kvm import KvmVfio
    from vmm._native.vfio import VfioContainer, VfioDevice, VfioGroup
    from vmm.memory import Progress

log = get_logger(__name__)

GROUP_PATH = "/dev/vfio/{}"
# RAM is mapped in pieces, so that the progress of a large guest can be told.
CHUNK_BYTES = 4 << 30
PROGRESS_SECONDS = 2.0


class Domain:
    """One container. Control thread only; close() comes after the devices are closed.

    ``progress`` is called before each piece of RAM is pinned, which may take long.
    """

    def __init__(self, kvm: KvmVfio, progress: Progress = no_progress) -> None:
        self._kvm = kvm
        self._progress = progress
        self._container: VfioContainer | None = None
        self._groups: dict[int, VfioGroup] = {}
        self._told_kvm: set[int] = set()
        self._ranges: list[tuple[int, int]] = []

    def open_device(self, bdf: str, group: int, memory: GuestMemory) -> VfioDevice:
        """The device's fd; the first one brings the container and all of RAM's mappings."""
        if group not in self._groups:
            self._add_group(group, memory)
        try:
            return self._groups[group].get_device_fd(bdf)
        except OSError as error:
            raise HostError(
                f"cannot open the device {bdf} of IOMMU group {group}: {error}",
                "see the kernel's log; a device in a low power state or without its "
                "vfio-pci driver answers so",
            ) from error

    def _add_group(self, number: int, memory: GuestMemory) -> None:
        container = self._container or self._open_container()
        group = self._open_group(number)
        try:
            group.set_container(container)
        except OSError as error:
            group.close()
            raise HostError(
                f"IOMMU group {number} cannot join the others' container: {error}",
                "pass devices through that are behind the same kind of IOMMU",
            ) from error
        self._groups[number] = group
        if len(self._groups) == 1:
            container.set_iommu(vfio.TYPE1V2)
            self._map_ram(container, memory)
        self._kvm.add_group(group.fd)
        self._told_kvm.add(number)

    def _open_container(self) -> VfioContainer:
        try:
            container = vfio.VfioContainer.open()
        except OSError as error:
            raise HostError(
                f"cannot open /dev/vfio/vfio: {error.strerror}",
                "modprobe vfio-pci; and give this user the right to open it",
            ) from error
        self._container = container
        if container.get_api_version() != vfio.API_VERSION or not container.check_extension(
            vfio.TYPE1V2
        ):
            raise HostError(
                "this host's VFIO has no type 1 version 2 IOMMU", "modprobe vfio_iommu_type1"
            )
        return container

    def _open_group(self, number: int) -> VfioGroup:
        path = GROUP_PATH.format(number)
        try:
            group = vfio.VfioGroup.open(path)
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise BusyError(
                    f"{path} is in use by another process", "stop the other VM first"
                ) from error
            raise HostError(
                f"cannot open {path}: {error.strerror}",
                f"chown it to the user who runs this (a udev rule keeps that): chown USER {path}",
            ) from error
        flags = group.get_status()
        if not flags & vfio.VIABLE or flags & vfio.CONTAINER_SET:
            group.close()
            what = "is in use already" if flags & vfio.VIABLE else "has members on host drivers"
            raise HostError(
                f"IOMMU group {number} {what}",
                f"ls -l /sys/kernel/iommu_groups/{number}/devices/*/driver",
            )
        return group

    def _map_ram(self, container: VfioContainer, memory: GuestMemory) -> None:
        """All RAM at its guest addresses. It is faulted in and pinned, which takes its time."""
        self._check_ranges(container, memory)
        started = told = time.monotonic()
        total = memory.size
        done = 0
        for gpa, size, hva in memory.slots:
            for offset in range(0, size, CHUNK_BYTES):
                length = min(CHUNK_BYTES, size - offset)
                self._progress("pinning", done, total)
                try:
                    container.map_dma(hva + offset, gpa + offset, length)
                except OSError as error:
                    raise HostError(
                        f"cannot map guest RAM [{gpa + offset:#x}, {gpa + offset + length:#x}) "
                        f"for devices: {error}",
                        f"{total} bytes must be locked: raise LimitMEMLOCK= (ulimit -l)",
                    ) from error
                done += length
                if time.monotonic() - told > PROGRESS_SECONDS:
                    told = time.monotonic()
                    log.info(f"pinned {done >> 20} of {total >> 20} MiB of guest RAM")
        seconds = time.monotonic() - started
        rate = total / (1 << 30) / max(seconds, 1e-9)
        log.info(
            f"guest RAM mapped for devices: {total >> 20} MiB in {seconds:.3f} s ({rate:.1f} GiB/s)"
        )

    def _check_ranges(self, container: VfioContainer, memory: GuestMemory) -> None:
        self._ranges = container.iova_ranges()
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

    def map_device_memory(self, hva: int, gpa: int, size: int) -> None:
        """Let devices reach device memory; OSError when the IOMMU or the kernel does not."""
        if not self._can_map(gpa, size):
            raise OSError(errno.ERANGE, f"this host's IOMMU can map {self._allowed()}")
        assert self._container is not None
        self._container.map_dma(hva, gpa, size)

    def unmap_device_memory(self, gpa: int, size: int) -> None:
        """Undo it."""
        if self._container is not None:
            self._container.unmap_dma(gpa, size)

    def close(self) -> None:
        """Give groups and container back; the mappings go with the container. Idempotent."""
        for number, group in self._groups.items():
            try:
                if number in self._told_kvm:
                    self._kvm.del_group(group.fd)
                group.unset_container()
            except OSError as error:
                # Closing the descriptors, which follows, lets everything go as well.
                log.warning(f"IOMMU group {number}: {error}")
            group.close()
        self._groups.clear()
        self._told_kvm.clear()
        if self._container is not None:
            self._container.close()
            self._container = None
        self._kvm.close()
