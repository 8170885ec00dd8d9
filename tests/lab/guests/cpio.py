"""A writer of the cpio format that kernels unpack ("newc", cpio(5)): no root, no file system."""

from __future__ import annotations

import gzip
import os
import stat
from pathlib import Path


class Archive:
    """Collects entries; bytes() gives the archive. Everything belongs to root."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._inode = 0
        self._known: set[str] = set()

    def _add(self, name: str, mode: int, content: bytes, device: tuple[int, int] = (0, 0)) -> None:
        self._inode += 1
        encoded = name.encode() + b"\0"
        fields = (
            self._inode, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(encoded), 0,
        )  # fmt: skip
        head = b"070701" + b"".join(b"%08x" % field for field in fields)
        self._data += head + encoded
        self._data += bytes(-len(self._data) % 4)
        self._data += content
        self._data += bytes(-len(self._data) % 4)

    def directory(self, name: str) -> None:
        """A folder and those above it."""
        parts = Path(name).parts
        for count in range(1, len(parts) + 1):
            path = "/".join(parts[:count])
            if path not in self._known:
                self._known.add(path)
                self._add(path, stat.S_IFDIR | 0o755, b"")

    def file(self, name: str, content: bytes, mode: int = 0o644) -> None:
        self.directory(os.path.dirname(name))
        self._add(name, stat.S_IFREG | mode, content)

    def link(self, name: str, target: str) -> None:
        self.directory(os.path.dirname(name))
        self._add(name, stat.S_IFLNK | 0o777, target.encode())

    def device(self, name: str, major: int, minor: int) -> None:
        """A character device."""
        self.directory(os.path.dirname(name))
        self._add(name, stat.S_IFCHR | 0o600, b"", (major, minor))

    def compressed(self) -> bytes:
        """The whole archive, gzip."""
        self._add("TRAILER!!!", 0, b"")
        return gzip.compress(bytes(self._data), 1)
