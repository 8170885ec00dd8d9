"""Opening files that must be files: what waits for a writer, or has no end, is refused."""

from __future__ import annotations

import errno
import os
import stat


def open_regular(path: str) -> int:
    """A descriptor for reading; OSError also for a folder, a FIFO or a device. It never waits."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    raise OSError(errno.EINVAL, "it is not a regular file", path)
