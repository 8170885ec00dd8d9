"""An instance: its name, its folder, the lock that says whether it runs, and its state file.

The folder is ``$XDG_RUNTIME_DIR/vllmd-hypervisor/NAME`` (root without that variable:
``/run/vllmd-hypervisor/NAME``), mode 0700, and holds ``lock``, ``control`` (a socket) and
``state.json``, which stays after the process has ended. The lock alone decides "running": the
kernel drops it with the process, however that ends.
"""

from __future__ import annotations

import os
import stat
import time
from errno import EISDIR, ENOSPC

from vmm._native.host.posix import ofd_conflict, ofd_lock
from vmm.errors import BusyError, ConfigError, HostError
from vmm.light import jsontext
from vmm.light.printable import brief
from vmm.light.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from vmm.settings.config import Config

FOLDER = "vllmd-hypervisor"
# sockaddr_un.sun_path has 108 bytes with its NUL (unix(7)).
SOCKET_PATH_MAX = 107
DIGEST_BYTES = 4
NAME_PART_MAX = 40
# Such a folder has room for every name as a rule: only a longer one is to blame alone.
RUNTIME_USUAL = "/run/user/1000"
SAFE = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"
STATE_BYTES_MAX = 1 << 20
LOCK_BYTES_MAX = 64


class Holder(Record):
    """Who holds an instance's lock: pid and start time in clock ticks since boot."""

    __slots__ = ("pid", "start_time")
    pid: int
    start_time: int

    def __init__(self, pid: int, start_time: int) -> None:
        self._set(pid=pid, start_time=start_time)


def name_of(config: Config) -> str:
    """The name set, or one made from the first system image's real path."""
    return config.name or name_from_image(config.system_images[0])


def name_from_image(path: str) -> str:
    """Base name of the real path, without its suffix, and a digest of all of it."""
    from _blake2 import blake2s

    real = os.path.realpath(path)
    base = os.path.splitext(os.path.basename(real))[0]
    safe = "".join([char if char in SAFE else "_" for char in base])[:NAME_PART_MAX]
    digest = blake2s(os.fsencode(real), digest_size=DIGEST_BYTES).hexdigest()
    return f"{safe.lstrip('.-') or 'vm'}-{digest}"


def runtime_base(environment: Mapping[str, str]) -> str:
    """XDG_RUNTIME_DIR, or where systemd-logind makes it."""
    uid = os.geteuid()
    default = "/run" if uid == 0 else f"/run/user/{uid}"
    return environment.get("XDG_RUNTIME_DIR") or default


def runtime_directory(environment: Mapping[str, str]) -> str:
    """Where the folders of all instances of this user are; HostError when there is no place."""
    base = runtime_base(environment)
    if not environment.get("XDG_RUNTIME_DIR") and not os.path.isdir(base):
        from vmm.host.files import HOST
        from vmm.host.nodes import runtime_directory_missing

        finding = runtime_directory_missing(HOST)
        raise HostError(finding.found, finding.remedy)
    if not os.path.isabs(base):
        raise ConfigError([f"XDG_RUNTIME_DIR={base}: not an absolute path"])
    return os.path.join(base, FOLDER)


def instance_names(directory: str) -> list[str]:
    """Every instance that has a folder."""
    try:
        return sorted([entry.name for entry in os.scandir(directory) if entry.is_dir()])
    except FileNotFoundError:
        return []


def process_start_time(pid: int) -> int:
    """Field 22 of /proc/PID/stat (proc(5)), which tells a reused pid from the old process."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return int(file.read().rpartition(")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return 0


class Instance:
    """The folder of one instance. acquire() makes this process its owner until release()."""

    def __init__(self, name: str, environment: Mapping[str, str]) -> None:
        self.name = name
        self.root = runtime_directory(environment)
        self.directory = os.path.join(self.root, name)
        self.socket_path = os.path.join(self.directory, "control")
        self.state_path = os.path.join(self.directory, "state.json")
        self._lock_path = os.path.join(self.directory, "lock")
        self._lock_fd = -1
        length = len(os.fsencode(self.socket_path))
        if length > SOCKET_PATH_MAX:
            raise ConfigError([_too_long(name, self.socket_path, length, environment)])

    def acquire(self) -> None:
        """Take the lock; BusyError names the process that has it."""
        try:
            for directory in (self.root, self.directory):
                _make_private(directory)
            self._lock_fd = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self.unusable(error.strerror) from error
        try:
            ofd_lock(self._lock_fd, True, 0, 0)
        except BlockingIOError:
            holder = self._read_holder(self._lock_fd)
            self.release()
            raise self.busy(holder) from None
        content = f"{os.getpid()} {process_start_time(os.getpid())}\n"
        try:
            # Cut only what is longer: that waits for the journal of some file systems, up to 4 ms.
            if os.pwrite(self._lock_fd, content.encode(), 0) < os.fstat(self._lock_fd).st_size:
                os.ftruncate(self._lock_fd, len(content))
        except OSError as error:
            self.release()
            raise self.unusable(error.strerror) from error

    def unusable(self, why: str | None) -> HostError:
        """The error for a folder that cannot be made or used."""
        return HostError(
            f"cannot use the instance folder {self.directory}: {why}",
            "check its disk and its permissions, or set XDG_RUNTIME_DIR to another folder",
        )

    def check_folder(self) -> None:
        """HostError when acquire() could not make or use the folder. Makes nothing."""
        from vmm.host.places import file_error, folder_error, full

        place = os.path.dirname(self.root)
        for directory in (self.root, self.directory):
            if not os.path.lexists(directory):
                break
            _check_private(directory)
            place = directory
        code = folder_error(place, for_socket=True)
        if not code and place == self.directory:
            code = file_error(self._lock_path)
            if os.path.isdir(self.socket_path):
                code = EISDIR
        if not code and not os.path.exists(self._lock_path) and full(place):
            code = ENOSPC
        if code:
            raise self.unusable(os.strerror(code))

    def busy(self, holder: Holder | None) -> BusyError:
        """The error for a start while ``holder`` runs the instance."""
        who = f"by process {holder.pid}" if holder else "already"
        return BusyError(
            f"the instance {self.name} is run {who}",
            f"stop it first: vllmd-hypervisor stop {self.name}",
        )

    def release(self) -> None:
        """Let the lock go; idempotent."""
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def holder(self) -> Holder | None:
        """The process that runs this instance, or None. For other processes than that one."""
        try:
            fd = os.open(self._lock_path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            return self._read_holder(fd) if ofd_conflict(fd, True, 0, 0) else None
        finally:
            os.close(fd)

    def last_owner(self) -> Holder | None:
        """The process that held the lock last, alive or dead; None when there was none."""
        try:
            with open(self._lock_path, "rb") as file:
                return _parse_holder(file.read(LOCK_BYTES_MAX))
        except FileNotFoundError:
            return None

    def _read_holder(self, fd: int) -> Holder | None:
        # The owner writes its pid right after taking the lock; a moment later it is there.
        for _ in range(50):
            holder = _parse_holder(os.pread(fd, LOCK_BYTES_MAX, 0))
            if holder is not None:
                return holder
            time.sleep(0.01)
        return None

    def write_state(self, state: dict[str, Any]) -> None:
        """Replace the state file in one step; OSError when the disk is full."""
        temporary = f"{self.state_path}.new"
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(jsontext.dumps(state, 1) + "\n")
        os.rename(temporary, self.state_path)

    def read_state(self) -> dict[str, Any] | None:
        """What the last owner wrote; None when there is nothing that can be read."""
        import json

        try:
            with open(self.state_path, encoding="utf-8") as file:
                found = json.loads(file.read(STATE_BYTES_MAX))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None


def _too_long(name: str, path: str, length: int, environment: Mapping[str, str]) -> str:
    """What makes the control socket's path too long: the folder, if somebody chose it."""
    told = f"the control socket {brief(path)} would have {length} bytes; {SOCKET_PATH_MAX} are"
    base = environment.get("XDG_RUNTIME_DIR", "")
    if not base:
        return f"VLLMD_HYPERVISOR_NAME={name}: {told} possible: use a shorter name"
    room = SOCKET_PATH_MAX - (length - len(os.fsencode(base)))
    return (
        f"XDG_RUNTIME_DIR={brief(base)}: {told} possible: set it to a folder whose path has at "
        f"most {room} bytes" + (", or use a shorter name" if room < len(RUNTIME_USUAL) else "")
    )


def _parse_holder(content: bytes) -> Holder | None:
    fields = content.split()
    if len(fields) == 2 and fields[0].isdigit() and fields[1].isdigit():
        return Holder(int(fields[0]), int(fields[1]))
    return None


def _make_private(directory: str) -> None:
    """A folder of mode 0700 that belongs to us; refuse one that others could have prepared."""
    try:
        os.mkdir(directory, 0o700)
    except FileExistsError:
        _check_private(directory)


def _check_private(directory: str) -> None:
    found = os.lstat(directory)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise HostError(
            f"{directory} is not a folder of this user's", "remove it, or set XDG_RUNTIME_DIR"
        )
