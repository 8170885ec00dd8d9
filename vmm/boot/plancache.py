"""Load plans kept between starts and between guests of a process: the same ELF is parsed once.

One small file for each kernel, named by its device, inode, size, mtime and ctime. An entry that is
stale, damaged or not ours is ignored; what it says is checked against the file again before use.
"""

from __future__ import annotations

import os
import struct

from vmm.boot.image import BZIMAGE, MULTIBOOT, PVH, LoadPlan, Segment

MAGIC = b"VHPLAN01"
HEAD = struct.Struct("<8sBQHI")
SEGMENT = struct.Struct("<QQQQ")
KINDS = (PVH, BZIMAGE, MULTIBOOT)
ENTRY_MAX_BYTES = 64 * 1024


# Of this process's latest kernels.
KEPT_MAX = 8
_kept: dict[tuple[int, ...], LoadPlan] = {}


def _key(stat: os.stat_result) -> tuple[int, ...]:
    return (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


def _path(directory: str, stat: os.stat_result) -> str:
    return os.path.join(directory, "plan-" + "-".join([f"{part:x}" for part in _key(stat)]))


def recall(stat: os.stat_result) -> LoadPlan | None:
    """The plan that this process made for the file with this ``stat``, or None. Any thread."""
    return _kept.get(_key(stat))


def remember(stat: os.stat_result, plan: LoadPlan) -> None:
    """Keep ``plan`` for the guests of this process. Any thread."""
    while len(_kept) >= KEPT_MAX:
        _kept.pop(next(iter(_kept)), None)
    _kept[_key(stat)] = plan


def load(directory: str, stat: os.stat_result) -> LoadPlan | None:
    """The plan kept for the file with this ``stat``, or None."""
    try:
        fd = os.open(_path(directory, stat), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        if os.fstat(fd).st_uid != os.geteuid():
            return None
        return decode(os.read(fd, ENTRY_MAX_BYTES))
    except OSError:
        return None
    finally:
        os.close(fd)


def store(directory: str, stat: os.stat_result, plan: LoadPlan) -> None:
    """Keep ``plan``; a cache that cannot be written is no reason not to start."""
    path = _path(directory, stat)
    temporary = f"{path}.{os.getpid()}"
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, encode(plan))
        finally:
            os.close(fd)
        os.rename(temporary, path)
    except OSError:
        return


def encode(plan: LoadPlan) -> bytes:
    """The plan as bytes."""
    head = HEAD.pack(
        MAGIC, KINDS.index(plan.kind), plan.entry, len(plan.segments), len(plan.setup_header)
    )
    body = [SEGMENT.pack(s.offset, s.file_size, s.gpa, s.memory_size) for s in plan.segments]
    return head + b"".join(body) + plan.setup_header


def decode(data: bytes) -> LoadPlan | None:
    """The plan in ``data``, or None when it is not exactly one."""
    if len(data) < HEAD.size:
        return None
    magic, kind, entry, count, header_size = HEAD.unpack_from(data)
    if magic != MAGIC or kind >= len(KINDS):
        return None
    if len(data) != HEAD.size + count * SEGMENT.size + header_size:
        return None
    segments = tuple(
        Segment(*SEGMENT.unpack_from(data, HEAD.size + n * SEGMENT.size)) for n in range(count)
    )
    return LoadPlan(KINDS[kind], entry, segments, data[len(data) - header_size :])
