"""Where a contender writes: a pipe, or a terminal for one that starts on nothing else."""

from __future__ import annotations

import errno
import os
import tty

CHUNK = 1 << 16


def opened(terminal: bool) -> tuple[int, int]:
    """(what we read, what it gets); a terminal is raw: all comes as it is, nothing is echoed."""
    if not terminal:
        return os.pipe()
    reader, writer = os.openpty()
    tty.setraw(writer)
    return reader, writer


def read_or_end(fd: int) -> bytes:
    """What is there; nothing at the end, which a terminal that nobody has open tells by EIO."""
    try:
        return os.read(fd, CHUNK)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return b""
