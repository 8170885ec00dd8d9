"""NoCloud: what the guest's cloud-init finds on a disk labelled ``cidata``.

Sources: cloud-init's documentation, "NoCloud" and "User-data formats".
"""

from __future__ import annotations

import os
import stat
from errno import ENOENT

from vmm.errors import ConfigError, HostError
from vmm.seed import fat

LABEL = "cidata"
NAMES = ("user-data", "meta-data", "network-config")
FILE_BYTES_MAX = 16 << 20
# Passwords and keys are in it.
MODE = 0o600
# How user-data begins for cloud-init to know what it is; gzip is unpacked first.
BEGINNINGS = (
    b"#cloud-config", b"#!", b"#include", b"#cloud-boothook", b"#part-handler", b"## template:",
    b"Content-Type:", b"MIME-Version:", b"\x1f\x8b",
)  # fmt: skip


def write_seed(sources: list[str], target: str) -> list[str]:
    """Write user-data, meta-data and, as a third source, network-config; returns warnings.

    ``target`` is replaced in one step, and only when it is a seed of ours. ConfigError for what
    cannot be used, HostError when writing fails.
    """
    files = {name: _read(name, path) for name, path in zip(NAMES, sources, strict=False)}
    real = os.path.realpath(target)
    found = _check_target(target, real)
    temporary = f"{real}.{os.getpid()}.new"
    try:
        _write(temporary, *fat.make(LABEL, files), found)
        os.rename(temporary, real)
    except OSError as error:
        try:
            os.unlink(temporary)
        except OSError as second:
            if second.errno != ENOENT:
                raise
        raise HostError(f"{target}: {error.strerror}", "write it to another place") from error
    return _warnings(files["user-data"], sources[0])


def _read(name: str, path: str) -> bytes:
    """The content of a file; a pipe will do."""
    try:
        with open(path, "rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError([f"{name}: {path}: {error.strerror}"]) from error
    if len(content) > FILE_BYTES_MAX:
        raise ConfigError([f"{name}: {path} has more than {FILE_BYTES_MAX >> 20} MiB"])
    return content


def _check_target(target: str, real: str) -> os.stat_result | None:
    """What is there already; ConfigError unless it is a seed. Nothing but files is opened."""
    try:
        found = os.stat(real)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError([f"{target}: {error.strerror}"]) from error
    if stat.S_ISREG(found.st_mode):
        try:
            with open(real, "rb") as file:
                head = file.read(fat.SECTOR)
        except OSError as error:
            raise ConfigError([f"{target}: {error.strerror}"]) from error
        if head[3:11] == fat.OEM_NAME and head[43:54].rstrip() == LABEL.encode():
            return found
    raise ConfigError([f"{target} is there, and no seed: remove it, or choose another name"])


def _write(
    path: str, size: int, pieces: list[tuple[int, bytes]], old: os.stat_result | None
) -> None:
    """A sparse file of the pieces, on the disk, with the rights of the one it replaces."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, MODE)
    try:
        os.ftruncate(fd, size)
        for offset, data in pieces:
            view = memoryview(data)
            while view:
                done = os.pwrite(fd, view, offset)
                view, offset = view[done:], offset + done
        if old is not None:
            if (old.st_uid, old.st_gid) != (os.geteuid(), os.getegid()):
                os.fchown(fd, old.st_uid, old.st_gid)
            os.fchmod(fd, stat.S_IMODE(old.st_mode))
        os.fsync(fd)
    finally:
        os.close(fd)


def _warnings(user_data: bytes, path: str) -> list[str]:
    if not user_data or user_data.startswith(BEGINNINGS):
        return []
    first = user_data.split(b"\n", 1)[0][:40]
    return [f"{path} begins with {first!r}: cloud-init knows '#cloud-config' and '#!', not this"]
