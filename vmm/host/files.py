"""The host as its files show it, and who this process is in it.

Checks read it through a Host, so that tests can hand them a folder instead. Nothing here changes
the host. Source: proc(5), sysfs's Documentation/ABI.
"""

from __future__ import annotations

import os

KVM_PATH = "/dev/kvm"
SYS_NODES = "/sys/devices/system/node"
UNLIMITED = "unlimited"
READ_SIZE = 1 << 14
CAP_IPC_LOCK = 14  # capability.h
ALL_IDS = ["0", "0", "4294967295"]


def read_file(path: str) -> bytes:
    """All of a file, in a third of the system calls that open() makes for it. OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        found = data = os.read(fd, READ_SIZE)
        while data:
            data = os.read(fd, READ_SIZE)
            found += data
        return found
    finally:
        os.close(fd)


class Host:
    """Files under ``root`` (empty: the real ones). Any thread; missing files read as None."""

    def __init__(self, root: str = "") -> None:
        self.root = root

    def text(self, path: str) -> str | None:
        """A file's content without blanks around it."""
        try:
            return read_file(self.root + path).decode(errors="replace").strip()
        except OSError:
            return None

    def number(self, path: str) -> int | None:
        """A file's content as a decimal number."""
        text = self.text(path)
        return int(text) if text is not None and text.isdigit() else None

    def device_number(self, path: str) -> int | None:
        """The device that a file such as ``dev`` of sysfs names by major and minor number."""
        major, separator, minor = (self.text(path) or "").partition(":")
        return os.makedev(int(major), int(minor)) if separator else None

    def names(self, path: str) -> list[str]:
        """A folder's entries, ascending; empty without it."""
        try:
            return sorted(os.listdir(self.root + path))
        except OSError:
            return []

    def link(self, path: str) -> str | None:
        """The last part of what a symbolic link points to."""
        try:
            return os.path.basename(os.readlink(self.root + path))
        except OSError:
            return None

    def exists(self, path: str) -> bool:
        """True for anything there."""
        return os.path.exists(self.root + path)

    def usable(self, path: str) -> bool:
        """True when this process may open it for reading and writing."""
        return os.access(self.root + path, os.R_OK | os.W_OK, effective_ids=True)

    def open_error(self, path: str) -> int:
        """0 when it opens for reading and writing, else the errno."""
        try:
            os.close(os.open(self.root + path, os.O_RDWR | os.O_CLOEXEC))
        except OSError as error:
            return error.errno or 1
        return 0

    def owner(self, path: str) -> tuple[int, int, int]:
        """(mode bits, user, group) of a file that exists."""
        found = os.stat(self.root + path)
        return found.st_mode & 0o777, found.st_uid, found.st_gid

    def processors(self) -> set[int]:
        """Those that this thread may run on, by its affinity mask and its cpuset."""
        return os.sched_getaffinity(0)

    @property
    def uid(self) -> int:
        """The user that this process acts for."""
        return os.geteuid()

    def user(self) -> str:
        """That user's name, or its number where /etc/passwd does not know it."""
        return self._entry("/etc/passwd", 2, str(self.uid))[0] or str(self.uid)

    def group(self, gid: int) -> str:
        """A group's name, or its number."""
        return self._entry("/etc/group", 2, str(gid))[0] or str(gid)

    def group_members(self, group: str) -> list[str]:
        """Users whom /etc/group lists in it; they have it from their next login on."""
        return self._entry("/etc/group", 0, group)[3].split(",")

    def has_group(self, group: str) -> bool:
        """True when /etc/group knows it."""
        return bool(self._entry("/etc/group", 0, group)[0])

    def _entry(self, path: str, field: int, value: str) -> list[str]:
        for line in (self.text(path) or "").split("\n"):
            fields = line.split(":")
            if len(fields) >= 4 and fields[field] == value:
                return fields
        return ["", "", "", ""]

    def locked_memory_limits(self) -> tuple[int | None, int | None]:
        """RLIMIT_MEMLOCK, soft and hard, in bytes; None for no limit."""
        return self._limits("Max locked memory")

    def open_files_limit(self) -> int | None:
        """RLIMIT_NOFILE, the soft one; None for no limit."""
        return self._limits("Max open files")[0]

    def _limits(self, name: str) -> tuple[int | None, int | None]:
        for line in (self.text("/proc/self/limits") or "").split("\n"):
            if line.startswith(name):
                soft, hard = line.split()[3:5]
                return _limit(soft), _limit(hard)
        return None, None

    def may_lock_everything(self) -> bool:
        """True with CAP_IPC_LOCK over the whole host, not only over a user namespace."""
        if (self.text("/proc/self/uid_map") or "").split() != ALL_IDS:
            return False
        for line in (self.text("/proc/self/status") or "").split("\n"):
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) >> CAP_IPC_LOCK & 1)
        return False


def _limit(word: str) -> int | None:
    return None if word == UNLIMITED else int(word)


HOST = Host()
