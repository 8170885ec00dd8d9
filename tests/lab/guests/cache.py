"""Where kernels and images are kept between runs: each is made once, by version."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path


def cache_directory() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    directory = Path(base) / "vllmd-hypervisor"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """One process at a time makes a thing of this name."""
    with open(cache_directory() / f".{name}.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def cached(name: str, make: Callable[[Path], None]) -> Path:
    """The file or folder ``name``; ``make(path)`` fills it once, and only a whole one is kept."""
    target = cache_directory() / name
    with locked(name):
        if not target.exists():
            work = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=cache_directory()))
            try:
                make(work / "new")
                (work / "new").rename(target)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    return target
