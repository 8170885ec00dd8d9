"""Files that are written beside their name and take it when they are whole."""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager, suppress

from vmm.errors import HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def fresh_file(path: str) -> Iterator[int]:
    """The descriptor of a new file, for this user alone; it becomes ``path`` when the block ends.

    What is raised in the block, or by the kernel, comes out, and nothing is left. HostError when
    what has the name is no regular file: a device, a FIFO, a folder.
    """
    _check_replaceable(path)
    fresh = f"{path}.{os.getpid()}.new"
    fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            yield fd
        finally:
            os.close(fd)
        os.replace(fresh, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(fresh)
        raise


def _check_replaceable(path: str) -> None:
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return  # nothing there, or what opening the new file will tell
    if not stat.S_ISREG(mode):
        raise HostError(
            f"{path} is no regular file and would be replaced by one", "give another path"
        )
