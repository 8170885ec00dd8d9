"""No file has two roles: what is read as a disk or kernel is nobody's log, and no disk is given
twice, whatever the names. Nor is another VM's disk anybody's log: its lock tells.

A file is known by device and inode, so that links do not hide it; one that does not exist yet by
its real path. Of block devices sysfs tells what they are part of or show (loop devices, partitions,
device mapper, md): two that have bytes in common are one file here.
Source: Documentation/ABI/testing/sysfs-block, sysfs-block-loop.
"""

from __future__ import annotations

import os
import stat

from vmm.errors import SETTING_PREFIX as PREFIX
from vmm.errors import BusyError, ConfigError
from vmm.host.files import HOST
from vmm.host.finding import Finding, problem
from vmm.host.image_lock import lock_holders, would_lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    # What a file is at last: a number or a path that nothing else has.
    Key = tuple[object, ...]

SYS_BLOCK = "/sys/dev/block"
SECTOR = 512
EVERYTHING = 1 << 64
# Loop devices on partitions of loop devices and so on; the kernel allows fewer.
DEPTH_MAX = 16
OUTPUTS = ("LOG_FILEPATH", "CONSOLE", "SERIAL")
# What of Config is looked at.
FIELDS = (
    "kernel_path", "initramfs_path", "system_images", "config_images", "log_destinations",
    "console", "serial",
)  # fmt: skip
NO_FILES = ("journald", "syslog")
STREAMS = {"/dev/stdout": 1, "/dev/stderr": 2}


class Extent:
    """Bytes ``start`` to ``end`` of the file ``key``; ``exact`` False: some of them."""

    def __init__(self, key: Key, start: int = 0, end: int = EVERYTHING, exact: bool = True) -> None:
        self.key = key
        self.start = start
        self.end = end
        self.exact = exact

    def meets(self, other: Extent) -> bool:
        """True when they have bytes in common, as far as it is known."""
        common = self.key == other.key and self.start < other.end and other.start < self.end
        return common and (self.exact or other.exact)


class Role:
    """A file that a setting names. Raises nothing: what is wrong with it others tell."""

    def __init__(self, variable: str, path: str, fd: int = -1) -> None:
        self.variable = variable
        self.path = path
        self.is_output = not variable or variable in OUTPUTS
        # A stream is not named by its setting, and log and console may share it.
        self.is_stream = fd >= 0
        self.is_block = self.is_file = False
        self.fd = fd
        self.extents: list[Extent] = []
        try:
            found = os.fstat(fd) if self.is_stream else os.stat(path)
        except (OSError, ValueError):
            if not self.is_stream:
                self.extents = [Extent(("path", os.path.realpath(path)))]
            return
        self.is_block = stat.S_ISBLK(found.st_mode)
        self.is_file = stat.S_ISREG(found.st_mode)
        if not stat.S_ISCHR(found.st_mode) and not stat.S_ISFIFO(found.st_mode):
            self.extents = list(extents_of(found))

    def meets(self, other: Role) -> bool:
        """True when both are one file, or have bytes in common."""
        return any(one.meets(two) for one in self.extents for two in other.extents)

    @property
    def told(self) -> str:
        """How an error names it."""
        return f"{PREFIX}{self.variable} {self.path}" if self.variable else self.path


def file_roles(settings: Mapping[str, Any]) -> list[Finding]:
    """A problem for each file with two roles, here or in another VM.

    ``settings``: Config's fields, as far as known.
    """
    roles = list(_roles(settings))
    findings = []
    keys = [extent.key for role in roles for extent in role.extents]
    # As a rule no two have anything in common.
    apart = len(set(keys)) == len(keys)
    for index, role in enumerate(roles):
        if role.is_output and role.is_block:
            findings.append(_refused(f"{role.told}: a block device cannot take a log or console"))
            continue
        for other in () if apart else roles[:index]:
            if _may_share(role, other) or not role.meets(other):
                continue
            what = "file" if role.is_output or other.is_output else "image"
            told = f"{role.told}: it is the same {what} as {other.told}"
            findings.append(_refused(told))
            break
        else:
            if role.is_output and role.is_file and (used := _used_as_image(role)):
                findings.append(used)
    return findings or [Finding("file-roles", "each file has one role")]


def named_files(settings: Mapping[str, Any]) -> list[str]:
    """Every path that the settings name, as far as they are known."""
    paths = [settings.get("kernel_path"), settings.get("initramfs_path")]
    paths += [settings[end].path for end in ("console", "serial") if end in settings]
    for field in ("system_images", "config_images"):
        paths += [image.path for image in settings.get(field, ())]
    return [path for path in (*paths, *settings.get("log_destinations", ())) if path]


def _may_share(one: Role, two: Role) -> bool:
    """Streams are shared by log and console; who redirects them into a log file may do so."""
    return (one.is_stream and two.is_output) or (two.is_stream and one.is_output)


def _refused(told: str) -> Finding:
    return problem("file-roles", told, advice="give each file one role", code=ConfigError.exit_code)


def _used_as_image(role: Role) -> Finding | None:
    """A file for output that somebody holds locked, as VMMs do with their images and nobody else
    with a log.
    """
    fd = role.fd if role.is_stream else _open(role.path)
    if fd < 0:
        return None
    try:
        if would_lock(fd, read_only=False):
            return None
        holders = [str(pid) for pid in lock_holders(os.fstat(fd))]
    finally:
        if not role.is_stream:
            os.close(fd)
    who = f"process {', '.join(holders)}" if holders else "somebody else"
    return problem(
        "file-roles", f"{role.told}: {who} has it locked, as a VM does with its disk image",
        advice="name another file, or stop what uses this one", code=BusyError.exit_code,
    )  # fmt: skip


def _open(path: str) -> int:
    """For asking about its locks; -1 where it cannot be opened, which others tell."""
    for mode in (os.O_RDONLY, os.O_WRONLY):
        try:
            return os.open(path, mode | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError:
            continue
    return -1


def _roles(settings: Mapping[str, Any]) -> Iterator[Role]:
    """Files that are read or written as data first, then those that only grow."""
    for variable, field in (("KERNEL_FILEPATH", "kernel_path"),
                            ("INITRAMFS_FILEPATH", "initramfs_path")):  # fmt: skip
        if settings.get(field):
            yield Role(variable, settings[field])
    for image in settings.get("system_images", ()):
        yield Role("SYSTEM_IMAGE_FILEPATH", image.path)
    for image in settings.get("config_images", ()):
        yield Role("CONFIG_IMAGE_FILEPATH", image.path)
    for destination in settings.get("log_destinations", ()):
        if destination in STREAMS:
            yield Role("LOG_FILEPATH", destination, STREAMS[destination])
        elif destination not in NO_FILES:
            yield Role("LOG_FILEPATH", destination)
    for variable, field in (("CONSOLE", "console"), ("SERIAL", "serial")):
        end = settings.get(field)
        if end is not None and end.path:
            yield Role(variable, end.path)
        elif end is not None and end.kind == "tty":
            yield Role(variable, "/dev/stdout", 1)
    # Whatever the settings, the last words of a start that fails go there.
    yield Role("", "/dev/stderr", 2)


def extents_of(found: os.stat_result) -> Iterator[Extent]:
    """What a file is, and for a block device what it is part of or shows, from the top down."""
    if not stat.S_ISBLK(found.st_mode):
        yield Extent(("file", found.st_dev, found.st_ino))
        return
    yield from _device_extents(Extent(("device", found.st_rdev)), 0)


def _device_extents(extent: Extent, depth: int) -> Iterator[Extent]:
    yield extent
    number = extent.key[1]
    if depth == DEPTH_MAX or extent.key[0] != "device" or not isinstance(number, int):
        return
    folder = f"{SYS_BLOCK}/{os.major(number)}:{os.minor(number)}"
    for below, start, size, exact in _below(folder):
        end = start + size if size else EVERYTHING
        if exact:
            begin = start + extent.start
            yield from _device_extents(
                Extent(below, begin, min(end, start + extent.end), extent.exact), depth + 1
            )
        else:
            yield from _device_extents(Extent(below, exact=False), depth + 1)


def _below(folder: str) -> Iterator[tuple[Key, int, int, bool]]:
    """(what it lies on, first byte there, bytes or 0 for all, whether that is known)."""
    if os.path.exists(f"{folder}/partition"):
        disk = HOST.device_number(f"{os.path.realpath(folder)}/../dev")
        if disk is not None:
            start, size = _number(f"{folder}/start"), _number(f"{folder}/size")
            yield ("device", disk), start * SECTOR, size * SECTOR, True
    backing = _backing_file(f"{folder}/loop/backing_file")
    if backing:
        try:
            found = os.stat(backing)
        except OSError:
            return  # removed, or in a mount namespace of others
        offset, size = _number(f"{folder}/loop/offset"), _number(f"{folder}/loop/sizelimit")
        if stat.S_ISBLK(found.st_mode):
            yield ("device", found.st_rdev), offset, size, True
        else:
            yield ("file", found.st_dev, found.st_ino), offset, size, True
    for slave in HOST.names(f"{folder}/slaves"):
        number = HOST.device_number(f"{folder}/slaves/{slave}/dev")
        if number is not None:
            yield ("device", number), 0, 0, False


def _backing_file(path: str) -> str:
    """To the byte: its name may be no UTF-8, or end with blanks."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read().rstrip("\n")
    except OSError:
        return ""


def _number(path: str) -> int:
    return HOST.number(path) or 0
