"""Guest RAM by configuration: regions, backing, NUMA node, locks, prefault."""

from __future__ import annotations

import os
import time

from vmm._native.host.posix import lock_pages
from vmm._native.memory.guestmem import GuestMemory
from vmm.errors import HostError
from vmm.layout import GIB, MIB, ram_regions
from vmm.log.hub import get_logger

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.kept import Kept
    from vmm.settings.memory import MemoryConfig

    # (what is being done, bytes done, bytes in all), told on the control thread.
    Progress = Callable[[str, int, int], None]

log = get_logger(__name__)

# One thread for so many bytes pays off; fewer only add start-up cost (the kernel clears about
# 10 GiB/s a thread).
PREFAULT_BYTES_PER_THREAD = 64 * MIB
PREFAULT_THREADS_MAX = 16
# RAM is prefaulted in pieces, so that the progress of a large guest can be told.
PREFAULT_PIECE_BYTES = 4 * GIB


def no_progress(what: str, done: int, total: int) -> None:
    """For callers that do not want to know."""


def allocate(
    config: MemoryConfig, progress: Progress = no_progress, kept: Kept | None = None
) -> GuestMemory:
    """Map the guest's RAM as configured; HostError when the host refuses it.

    ``progress`` is called before each piece of a prefault, which may take long. ``kept``: at a
    reboot, the file system for its file.
    """
    memory = map_ram(config, kept)
    if memory.refused and kept is None:
        log.warning(
            f"guest RAM is in pages of 4 KiB, and the guest slower for it: {memory.refused} "
            "(`vllmd-hypervisor check` tells the cure)"
        )
    place(memory, config, progress)
    return memory


def map_ram(config: MemoryConfig, kept: Kept | None = None) -> GuestMemory:
    """Its address space, with nothing in it yet; HostError when the host refuses it."""
    try:
        return GuestMemory(
            ram_regions(config.size),
            shared=config.shared,
            hugepage_size=config.hugepage_size if config.hugepages else 0,
            mergeable=config.mergeable,
            thp=config.thp,
            again=None if kept is None else (kept.mount, kept.refused),
        )
    except OSError as error:
        raise _cannot_map(config, error) from error


def place(memory: GuestMemory, config: MemoryConfig, progress: Progress = no_progress) -> None:
    """Bind, lock and prefault it; HostError where that is refused, and it is closed."""
    try:
        if config.host_numa_node is not None:
            memory.bind_node(config.host_numa_node)
        if config.mlock:
            _lock(memory, config)
        _prefault(memory, config, progress)
    except OSError as error:
        memory.close()
        node = config.host_numa_node
        remedy = "free memory, or leave prefault=on out of VLLMD_HYPERVISOR_MEMORY_CONFIG"
        if node is not None:
            remedy = (
                f"check host_numa_node={node} against `ls /sys/devices/system/node`, and free "
                "memory there"
            )
        raise HostError(f"cannot place guest RAM: {error}", remedy) from error


def _cannot_map(config: MemoryConfig, error: OSError) -> HostError:
    told = f"cannot map {config.size / GIB:.2f} GiB of guest RAM"
    if not config.hugepages:
        return HostError(
            f"{told}: {error}", "lower size in VLLMD_HYPERVISOR_MEMORY_CONFIG, or free memory"
        )
    size = config.hugepage_size
    return HostError(
        f"{told} in {config.size // size} huge pages of {size >> 10} KiB: {error}",
        "others use or have reserved the host's: raise "
        f"/sys/kernel/mm/hugepages/hugepages-{size >> 10}kB/nr_hugepages",
    )


def _lock(memory: GuestMemory, config: MemoryConfig) -> None:
    try:
        for _, size, address in memory.slots:
            lock_pages(address, size)
    except OSError as error:
        memory.close()
        raise HostError(
            f"mlock=on: cannot lock {config.size / GIB:.2f} GiB of guest RAM: {error}",
            "raise the limit (`ulimit -l`; LimitMEMLOCK= in a unit), or leave mlock=on out of "
            "VLLMD_HYPERVISOR_MEMORY_CONFIG; `vllmd-hypervisor check` tells how",
        ) from error


def _prefault(memory: GuestMemory, config: MemoryConfig, progress: Progress) -> None:
    # The kernel reserves huge pages of the host, not of a node: those have to be taken.
    if config.prefault or (config.hugepages and config.host_numa_node is not None):
        threads = min(
            os.cpu_count() or 1,
            PREFAULT_THREADS_MAX,
            max(1, config.size // PREFAULT_BYTES_PER_THREAD),
        )
        started = time.monotonic()
        done = 0
        for gpa, size in memory.regions:
            for offset in range(0, size, PREFAULT_PIECE_BYTES):
                progress("prefaulting", done, config.size)
                length = min(PREFAULT_PIECE_BYTES, size - offset)
                memory.prefault_range(gpa + offset, length, threads)
                done += length
        seconds = time.monotonic() - started
        log.info(
            f"prefaulted {config.size / GIB:.2f} GiB of guest RAM in {seconds:.2f} s "
            f"({config.size / GIB / max(seconds, 1e-9):.1f} GiB/s, {threads} threads)"
        )


def memory_status(config: MemoryConfig, memory: GuestMemory) -> dict[str, object]:
    """Facts for `status`; all sizes in bytes.

    ``rss`` is this process's resident memory by kind (proc(5), /proc/pid/status). Guest RAM is
    its shmem part, or with shared=off within its anon part; the rest is the VMM itself.
    """
    rss = {}
    with open("/proc/self/status", encoding="ascii") as file:
        for line in file:
            name, _, value = line.partition(":")
            if name in ("RssAnon", "RssFile", "RssShmem"):
                rss[name.removeprefix("Rss").lower()] = int(value.split()[0]) * 1024
    return {
        "size": config.size,
        "shared": config.shared or config.hugepages,
        "backing": memory.backing,
        "huge": memory.huge,
        "huge_refused": memory.refused,
        "hugepage_size": config.hugepage_size if config.hugepages else 0,
        "locked": config.mlock,
        "node": config.host_numa_node,
        "rss": rss,
    }
