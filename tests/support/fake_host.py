"""A Host over a folder, with a user of choice and files that this user may not open."""

from __future__ import annotations

from pathlib import Path

from vmm.host.files import Host


class FakeHost(Host):
    """``files``: path to content. ``denied``: not for this user. ``failing``: path to errno."""

    def __init__(self, root: Path, files: dict[str, str] | None = None, uid: int = 1000) -> None:
        super().__init__(str(root))
        self.acting = uid
        self.denied: set[str] = set()
        self.failing: dict[str, int] = {}
        self.owners: dict[str, tuple[int, int, int]] = {}
        self.add("/etc/passwd", "root:x:0:0::/:/bin/sh\nalice:x:1000:1000::/home/alice:/bin/sh\n")
        self.add("/etc/group", "root:x:0:\nkvm:x:104:bob\ndisk:x:6:\n")
        for path, content in (files or {}).items():
            self.add(path, content)

    def add(self, path: str, content: str = "") -> FakeHost:
        file = Path(self.root + path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
        return self

    def deny(self, path: str, mode: int, gid: int) -> FakeHost:
        """A file that exists and is not for this user."""
        self.add(path)
        self.denied.add(path)
        self.owners[path] = (mode, 0, gid)
        return self

    @property
    def uid(self) -> int:
        return self.acting

    def usable(self, path: str) -> bool:
        return self.exists(path) and path not in self.denied

    def open_error(self, path: str) -> int:
        return self.failing.get(path, 0)

    def owner(self, path: str) -> tuple[int, int, int]:
        return self.owners[path]
