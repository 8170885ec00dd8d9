"""Finds a running instance and attaches to it, or says why that cannot be.

What the instance tells of its guest is held against what a guest can be before it is used.
"""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING, Any

from vmm.debug.attach.link import Link
from vmm.debug.attach.memory import AskedMemory, FileMemory
from vmm.errors import HostError, NotRunningError
from vmm.layout import PAGE_SIZE
from vmm.run.instance import CONTROL
from vmm.settings.config import CPU_MAX
from vmm.settings.memory import SIZE_MAX

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.run.folder import Folder

REGIONS_MAX = 8
ADDRESS_MAX = 1 << 52


def attach_to(folder: Folder, write: bool = False) -> Link:
    """The connection to a running instance. VmmError says why there is none."""
    if not folder.running:
        raise NotRunningError(f"the instance {folder.name} does not run", "start it first")
    process = folder.process()
    if process is not None:
        held = process.held()
        process.close()
        if held:
            raise HostError(f"the instance {folder.name}: process {process.pid} {held}")
    if not folder.state() and not _has_socket(folder):
        raise HostError(f"the instance {folder.name} is just starting", "try again in a moment")
    return Link(folder, CONTROL, write)


def _has_socket(folder: Folder) -> bool:
    try:
        os.stat(CONTROL, dir_fd=folder.fd, follow_symlinks=False)
    except OSError:
        return False
    return True


def same_user(folder: Folder) -> None:
    """HostError unless this process runs as the instance's user: his RAM may be mapped then."""
    if folder.uid != os.geteuid():
        raise HostError(
            f"the instance {folder.name} is run by user {folder.uid}, not by {os.geteuid()}",
            f"attach as that user (sudo -u '#{folder.uid}')",
        )


class Facts:
    """What an instance says of its guest. HostError for what cannot be."""

    def __init__(self, link: Link) -> None:
        told = link.greeting
        self.regions = _regions(link, told.get("regions"))
        vcpus = told.get("vcpus")
        if type(vcpus) is not int or not 1 <= vcpus <= CPU_MAX:
            raise link.nonsense(f"vcpus={str(vcpus)[:20]}")
        self.vcpus = vcpus
        kernel = told.get("kernel")
        self.kernel = kernel if isinstance(kernel, str) and "\0" not in kernel else ""
        self.shared = told.get("shared") is True
        self.size = sum(size for _, size in self.regions)


def _regions(link: Link, told: Any) -> list[tuple[int, int]]:
    end = 0
    found: list[tuple[int, int]] = []
    for row in told if isinstance(told, list) and 0 < len(told) <= REGIONS_MAX else [None]:
        if not isinstance(row, list) or [type(value) for value in row] != [int, int]:
            raise link.nonsense(f"regions={str(told)[:100]}")
        gpa, size = row
        if (
            gpa < end
            or size <= 0
            or gpa % PAGE_SIZE
            or size % PAGE_SIZE
            or gpa + size > ADDRESS_MAX
        ):
            raise link.nonsense(f"a region of RAM at {gpa:#x} with {size:#x} bytes")
        end = gpa + size
        found.append((gpa, size))
    if sum(size for _, size in found) > SIZE_MAX:
        raise link.nonsense(f"RAM with more than {SIZE_MAX} bytes")
    return found


def memory_of(link: Link, facts: Facts, kind: Callable[..., FileMemory] = FileMemory) -> Any:
    """Its RAM: by a ``kind`` over the descriptor that came, else by requests."""
    if facts.shared and can_be_mapped(link, facts):
        return kind(link, facts.regions)
    return AskedMemory(link, facts.regions)


def can_be_mapped(link: Link, facts: Facts) -> bool:
    """Nobody else can cut it off, which would end who maps it. HostError when it is no RAM.

    A memfd's size is sealed. A file of a tmpfs has no seals: our own user's will do.
    """
    fd = link.ram_fd
    if fd < 0:
        raise link.nonsense("no descriptor came with shared RAM")
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError as error:
        raise link.nonsense("its descriptor of RAM is none") from error
    found = os.fstat(fd)
    if found.st_size < facts.size:
        raise link.nonsense(f"its descriptor of RAM has {found.st_size} bytes")
    return bool(seals & fcntl.F_SEAL_SHRINK) or found.st_uid == os.geteuid()
