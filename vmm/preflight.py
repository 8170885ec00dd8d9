"""What must be true of the host before a machine is built; everything wrong is told at once."""

from __future__ import annotations

import os
import stat

from vmm.errors import ConfigError, HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmm.config import Config
    from vmm.config_memory import MemoryConfig

PREFIX = "VLLMD_HYPERVISOR_"
MIB = 1 << 20
SYS_NODES = "/sys/devices/system/node"
SYS_HUGEPAGES = "/sys/kernel/mm/hugepages"


def check_host(config: Config) -> None:
    """ConfigError for what the settings get wrong, HostError for what the host lacks."""
    wrong = [*_files(config), *_images(config)]
    lacking = memory_problems(config.memory)
    if wrong:
        raise ConfigError([*wrong, *[f"{problem} ({cure})" for problem, cure in lacking]])
    if lacking:
        problem, cure = lacking[0]
        more = "".join([f"\n{problem} ({cure})" for problem, cure in lacking[1:]])
        raise HostError(problem, cure + more)
    if config.devices:
        from vmm.pci_host import find_devices

        find_devices(config.devices)


def _files(config: Config) -> list[str]:
    named = [("KERNEL_FILEPATH", config.kernel_path)]
    if config.initramfs_path:
        named.append(("INITRAMFS_FILEPATH", config.initramfs_path))
    problems = []
    for variable, path in named:
        problem = _unreadable(path)
        if problem is None and not stat.S_ISREG(os.stat(path).st_mode):
            problem = "it is not a regular file"
        if problem:
            problems.append(f"{PREFIX}{variable}={path}: {problem}")
    return problems


def _unreadable(path: str, write: bool = False) -> str | None:
    """Why the file cannot be used, or None. ``write``: it must be writable as well."""
    try:
        os.stat(path)
    except OSError as error:
        return (error.strerror or str(error)).lower()
    if not os.access(path, os.R_OK):
        return "no permission to read it"
    if write and not os.access(path, os.W_OK):
        return "no permission to write it"
    return None


def _images(config: Config) -> list[str]:
    problems = []
    seen: dict[tuple[int, int], str] = {}
    images = [("SYSTEM_IMAGE_FILEPATH", path, True) for path in config.system_images]
    images += [("CONFIG_IMAGE_FILEPATH", path, False) for path in config.config_images]
    for variable, path, write in images:
        problem = _unreadable(path, write)
        if problem:
            problems.append(f"{PREFIX}{variable}: {path}: {problem}")
            continue
        found = os.stat(path)
        kind = found.st_mode
        if not stat.S_ISREG(kind) and not stat.S_ISBLK(kind):
            problems.append(f"{PREFIX}{variable}: {path}: neither a file nor a block device")
        key = (found.st_dev, found.st_rdev or found.st_ino)
        if key in seen:
            problems.append(
                f"{PREFIX}{variable}: {path} is the same image as {seen[key]}; give each once"
            )
        seen[key] = path
    return problems


def memory_problems(memory: MemoryConfig) -> list[tuple[str, str]]:
    """(problem, cure) of everything that keeps the host from giving this guest its RAM."""
    setting = f"{PREFIX}MEMORY_CONFIG"
    node = memory.host_numa_node
    if node is not None and not os.path.isdir(f"{SYS_NODES}/node{node}"):
        return [
            (
                f"{setting}: host_numa_node={node}: this host has no such node",
                f"ls -d {SYS_NODES}/node* shows them",
            )
        ]
    if memory.hugepages:
        return _huge_page_problems(memory)
    available = free_bytes(node)
    if memory.size <= available:
        return []
    where = "" if node is None else f" on node {node}"
    return [
        (
            f"{setting}: size={memory.size // MIB}M, but only {available // MIB}M of memory are "
            f"available{where}",
            "lower size, or free memory",
        )
    ]


def _huge_page_problems(memory: MemoryConfig) -> list[tuple[str, str]]:
    setting = f"{PREFIX}MEMORY_CONFIG"
    size = memory.hugepage_size
    node = memory.host_numa_node
    base = SYS_HUGEPAGES if node is None else f"{SYS_NODES}/node{node}/hugepages"
    folder = f"{base}/hugepages-{size // 1024}kB"
    try:
        offered = sorted(os.listdir(SYS_HUGEPAGES))
    except OSError:
        offered = []
    if not os.path.isdir(folder):
        sizes = ", ".join([name.removeprefix("hugepages-") for name in offered]) or "none"
        return [
            (
                f"{setting}: hugepage_size={size}: this host offers {sizes}",
                "use a size that it offers, or boot it with hugepagesz=",
            )
        ]
    wanted = memory.size // size
    with open(f"{folder}/free_hugepages", encoding="ascii") as file:
        free = int(file.read())
    if free >= wanted:
        return []
    return [
        (
            f"{setting}: {wanted} huge pages of {size // 1024} KiB are needed, {free} are free",
            f"echo N >{folder}/nr_hugepages, with N larger by {wanted - free} or more",
        )
    ]


def free_bytes(node: int | None = None) -> int:
    """Memory that can be had without swapping: MemAvailable (proc(5)), or a node's MemFree."""
    path = "/proc/meminfo" if node is None else f"{SYS_NODES}/node{node}/meminfo"
    key = "MemAvailable:" if node is None else "MemFree:"
    with open(path, encoding="ascii") as file:
        for line in file:
            if key in line:
                return int(line.split(key)[1].split()[0]) * 1024
    raise HostError(f"{path} has no {key.rstrip(':')}", "mount /proc as usual")
