"""Files that are written beside their name and then take it: what may stand there before."""

from __future__ import annotations

import os
import stat

from vmm.errors import HostError


def check_replaceable(path: str) -> None:
    """HostError when what has this name is no regular file: a device, a FIFO, a folder."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return  # nothing there, or what opening the new file will tell
    if not stat.S_ISREG(mode):
        raise HostError(
            f"{path} is no regular file and would be replaced by one", "give another path"
        )
