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
from errno import EINVAL, EISDIR, ENOSPC

from vmm._native.host.posix import ofd_conflict, ofd_lock
from vmm.errors import BusyError, ConfigError, HostError
from vmm.host.processes import ENDED_SECONDS, LOOK_SECONDS, is_ending, process_start_time
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
LOCK = "lock"
CONTROL = "control"
STATE = "state.json"
# Everything that an instance ever puts into its folder.
FILES = (STATE, f"{STATE}.new", CONTROL, LOCK)


class Holder(Record):
    """Who holds an instance's lock: pid and start time in clock ticks since boot."""

    __slots__ = ("pid", "start_time")
    pid: int
    start_time: int

    def __init__(self, pid: int, start_time: int) -> None:
        self._set(pid=pid, start_time=start_time)


def name_of(config: Config) -> str:
    """The name set, or one made from the first system image's real path."""
    return config.name or name_from_image(config.system_images[0].path)


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
        entries = list(os.scandir(directory))
    except FileNotFoundError:
        return []
    return sorted([entry.name for entry in entries if entry.is_dir(follow_symlinks=False)])


def open_plain(path: str, flags: int = os.O_RDONLY, directory: int | None = None) -> int:
    """A regular file, reached by no link; OSError for all else: a FIFO would hold us up."""
    flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    fd = os.open(path, flags, 0o600, dir_fd=directory)
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    raise OSError(EINVAL, "not a regular file", path)


def read_plain(path: str, limit: int, directory: int | None = None) -> bytes:
    """The first ``limit`` bytes of such a file."""
    fd = open_plain(path, directory=directory)
    try:
        return os.read(fd, limit)
    finally:
        os.close(fd)


class Instance:
    """The folder of one instance. acquire() makes this process its owner until release()."""

    def __init__(self, name: str, environment: Mapping[str, str]) -> None:
        self.name = name
        self.root = runtime_directory(environment)
        self.directory = os.path.join(self.root, name)
        self.socket_path = os.path.join(self.directory, CONTROL)
        self.state_path = os.path.join(self.directory, STATE)
        self._lock_path = os.path.join(self.directory, LOCK)
        self._lock_fd = -1
        self._made = False
        length = len(os.fsencode(self.socket_path))
        if length > SOCKET_PATH_MAX:
            raise ConfigError([_too_long(name, self.socket_path, length, environment)])

    def acquire(self) -> None:
        """Take the lock; BusyError names the process that has it."""
        while not self._locked():
            pass  # the file was removed in between: the folder's last state is being forgotten
        content = f"{os.getpid()} {process_start_time(os.getpid())}\n"
        try:
            # Cut only what is longer: that waits for the journal of some file systems, up to 4 ms.
            if os.pwrite(self._lock_fd, content.encode(), 0) < os.fstat(self._lock_fd).st_size:
                os.ftruncate(self._lock_fd, len(content))
        except OSError as error:
            self.release()
            raise self.unusable(error.strerror) from error

    def _locked(self) -> bool:
        """The lock is ours; False when the file that we locked is nobody's lock any more."""
        try:
            _make_private(self.root)
            self._made = _make_private(self.directory)
            self._lock_fd = open_plain(self._lock_path, os.O_RDWR | os.O_CREAT)
        except FileNotFoundError as error:
            if not self._made and os.path.isdir(self.root):
                return False
            raise self.unusable(error.strerror) from error
        except OSError as error:
            self.discard()
            raise self.unusable(error.strerror) from error
        self._take()
        if os.fstat(self._lock_fd).st_nlink:
            return True
        self.release()
        return False

    def _take(self) -> None:
        """Lock the file; one that was killed a moment ago still has it, for as long as it ends."""
        until = time.monotonic() + ENDED_SECONDS
        while True:
            try:
                ofd_lock(self._lock_fd, True, 0, 0)
                return
            except BlockingIOError:
                holder = read_holder(self._lock_fd)
                if holder is None or not is_ending(holder.pid) or time.monotonic() > until:
                    self.release()
                    raise self.busy(holder) from None
            time.sleep(LOOK_SECONDS)

    def discard(self) -> None:
        """Remove the folder of a start that failed, if that start made it; before release()."""
        if self._made:
            self._made = False
            try:
                remove_files(f"{self.directory}/")
                os.rmdir(self.directory)
            except OSError:
                return  # why the start failed is what is told

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
            fd = open_plain(self._lock_path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self.unusable(error.strerror) from error
        try:
            return read_holder(fd) if ofd_conflict(fd, True, 0, 0) else None
        finally:
            os.close(fd)

    def write_state(self, state: dict[str, Any]) -> None:
        """Replace the state file in one step; OSError when the disk is full."""
        temporary = f"{self.state_path}.new"
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(jsontext.dumps(state, 1) + "\n")
        os.rename(temporary, self.state_path)

    def read_state(self) -> dict[str, Any] | None:
        """What the last owner wrote; None when there is nothing that can be read."""
        try:
            return jsontext.loads(read_plain(self.state_path, STATE_BYTES_MAX))
        except (OSError, ValueError):
            return None


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


def read_holder(fd: int) -> Holder | None:
    """Who holds the lock, by what is written in it; None when that is not to be had."""
    # The owner writes its pid right after taking the lock; a moment later it is there.
    for _ in range(50):
        holder = parse_holder(os.pread(fd, LOCK_BYTES_MAX, 0))
        if holder is not None:
            return holder
        time.sleep(0.01)
    return None


def parse_holder(content: bytes) -> Holder | None:
    """The holder that a lock file names."""
    fields = content.split()
    if len(fields) == 2 and fields[0].isdigit() and fields[1].isdigit():
        return Holder(int(fields[0]), int(fields[1]))
    return None


def remove_files(prefix: str = "", directory: int | None = None) -> None:
    """Remove what an instance puts into its folder, the lock last. The caller holds the lock."""
    for name in FILES:
        try:
            os.unlink(prefix + name, dir_fd=directory)
        except FileNotFoundError:
            continue


def _make_private(directory: str) -> bool:
    """A folder of mode 0700 that belongs to us; True when it was made now.

    One that others could have prepared is refused.
    """
    try:
        os.mkdir(directory, 0o700)
    except FileExistsError:
        _check_private(directory)
        return False
    return True


def _check_private(directory: str) -> None:
    found = os.lstat(directory)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise HostError(
            f"{directory} is not a folder of this user's", "remove it, or set XDG_RUNTIME_DIR"
        )
