"""Which files a confined process may still open: Landlock's rules (landlock(7))."""

from __future__ import annotations

import os
import stat
import sys

from vmm.host.files import KVM_PATH
from vmm.log.stream import can_wait, is_terminal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm.settings.config import Config

    # A path or an open descriptor, and what may be done there and below.
    Rule = tuple[bytes | int, int]

# LANDLOCK_ACCESS_FS_ of linux/landlock.h.
WRITE_FILE, READ_FILE, READ_DIR, REMOVE_DIR, REMOVE_FILE = [1 << n for n in range(1, 6)]
MAKE_REG, MAKE_SOCK = 1 << 8, 1 << 9
TRUNCATE, IOCTL_DEV = 1 << 14, 1 << 15
READ = READ_FILE | READ_DIR
CHANGE = READ_FILE | WRITE_FILE | TRUNCATE
DEVICE = READ_FILE | WRITE_FILE | IOCTL_DEV
ADD = WRITE_FILE | MAKE_REG
# How many rights each version of the interface knows: they are handled all.
RIGHTS = (0, 13, 14, 15, 15, 16)
TCP_SINCE = 4
ABSTRACT_SINCE = 6
# LANDLOCK_ACCESS_NET_BIND_TCP and _CONNECT_TCP.
TCP = 3
# LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET. Not the one for signals: it would cut threads that began
# before off from those that began after, up to Linux 6.14.
ABSTRACT = 1
# Where a library of a module that is loaded late may be.
LIBRARIES = ("/usr/lib", "/lib", "/lib64", "/usr/local/lib", "/etc/ld.so.cache")


def handled(abi: int) -> int:
    """The rights that nobody has without a rule."""
    return (1 << RIGHTS[min(abi, len(RIGHTS) - 1)]) - 1


def rules(config: Config, directory: str, root: str, mount: int) -> list[Rule]:
    """For an instance whose folder is ``directory`` in ``root``; ``mount``: of its RAM, or -1."""
    found = [
        (directory, CHANGE | READ_DIR | MAKE_REG | MAKE_SOCK | REMOVE_FILE),
        # The folder of one that never ran goes.
        (root, REMOVE_DIR),
        # Of others' processes and secrets the kernel gives nothing away: landlock(7), "Ptrace".
        ("/proc", READ),
        ("/sys", READ),
        *_outputs(config),
        *_devices(config),
        *_code(),
    ]
    # Those that are opened anew, so that nobody waits for who reads them.
    anew = [fd for fd in range(3) if can_wait(fd)]
    if [fd for fd in anew if is_terminal(fd)]:
        found.append(("/dev/tty", DEVICE))
    descriptors: list[Rule] = [(fd, DEVICE) for fd in anew]
    if mount >= 0:
        descriptors.append((mount, CHANGE | MAKE_REG))
    return [*descriptors, *[(os.fsencode(path), rights) for path, rights in found]]


def _outputs(config: Config) -> Iterator[tuple[str, int]]:
    """Logs and consoles, which are opened anew when they are rotated; a debugger's socket."""
    for path in config.log_destinations:
        if "/" in path:
            yield _output(path, ADD)
    for end in (config.console, config.serial):
        if end.kind == "file":
            # A full one is renamed.
            yield _output(end.path, ADD | (TRUNCATE | REMOVE_FILE if end.max_bytes else 0))
        elif end.kind == "socket":
            yield _folder(end.path), REMOVE_FILE
    if config.gdb is not None and config.gdb.path:
        yield _folder(config.gdb.path), REMOVE_FILE


def _folder(path: str) -> str:
    """Where a link leads to, if it is one: there it is made anew."""
    return os.path.dirname(os.path.realpath(path) if os.path.islink(path) else path) or "."


def _output(path: str, rights: int) -> tuple[str, int]:
    """Its folder, where it is a file; else itself: a FIFO, a terminal."""
    try:
        regular = stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        regular = True
    return (_folder(path), rights) if regular else (path, DEVICE)


def _devices(config: Config) -> Iterator[tuple[str, int]]:
    if config.devices:
        yield "/dev/vfio", DEVICE | READ_DIR
        yield "/dev/iommu", DEVICE
    if config.gdb is not None:
        # What a debugger can do here is found out by trying, with a VM of its own.
        yield KVM_PATH, DEVICE


def _code() -> Iterator[tuple[str, int]]:
    """What modules that are loaded late are read from; the executable has all inside."""
    if sys.path:
        for path in (*sys.path, *LIBRARIES):
            if path:
                yield path, READ
