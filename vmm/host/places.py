"""Whether something could be made at a place, known without making it or disturbing who is there.

`start` makes files, folders and sockets and hears of it from the kernel; `check` asks here.
"""

from __future__ import annotations

import errno
import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

# File systems in which nobody makes files, whatever the modes say; with what the kernel answers.
FIXED = dict.fromkeys(
    ("sysfs", "devpts", "mqueue", "cgroup", "cgroup2", "debugfs", "tracefs", "securityfs", "bpf",
     "pstore", "efivarfs", "configfs", "binfmt_misc", "autofs", "fusectl", "rpc_pipefs",
     "hugetlbfs"),
    errno.EPERM,
)  # fmt: skip
FIXED["proc"] = errno.ENOENT
# They have files and folders only.
WITHOUT_SOCKETS = ("vfat", "msdos", "exfat", "ntfs3")
MOUNTS = "/proc/self/mountinfo"


def folder_error(folder: str, for_socket: bool = False) -> int:
    """The errno with which making something in ``folder`` would end; 0 when it would succeed."""
    try:
        mode = os.stat(folder).st_mode
    except OSError as error:
        return error.errno or errno.EIO
    if not stat.S_ISDIR(mode):
        return errno.ENOTDIR
    kind = file_system(folder)
    if kind in FIXED:
        return FIXED[kind]
    if for_socket and kind in WITHOUT_SOCKETS:
        return errno.EPERM
    system = os.statvfs(folder)
    if system.f_flag & os.ST_RDONLY:
        return errno.EROFS
    if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
        return errno.EACCES
    # Some count no files; folders and sockets need an entry, files a block as well.
    return errno.ENOSPC if system.f_files and not system.f_ffree else 0


def full(folder: str) -> bool:
    """Whether a byte that is written to a new file in ``folder`` finds no room."""
    system = os.statvfs(folder)
    free = system.f_bfree if os.geteuid() == 0 else system.f_bavail
    return bool(system.f_blocks) and not free


def file_system(path: str) -> str:
    """The type of the file system that ``path`` lies in, as proc(5) has it; empty if not known."""
    real = os.path.realpath(path)
    best, kind = "", ""
    for mounted, found in _mounts():
        inside = real == mounted or real.startswith(mounted.rstrip("/") + "/")
        # Of several at one place the last one is seen.
        if inside and len(mounted) >= len(best):
            best, kind = mounted, found
    return kind


def _mounts() -> Iterator[tuple[str, str]]:
    """(mount point, type) of each file system."""
    try:
        with open(MOUNTS, encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read().splitlines()
    except OSError:
        return
    for line in lines:
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        if len(fields) > 4 and after:
            yield _unescaped(fields[4]), after.split(" ")[0]


def _unescaped(text: str) -> str:
    for char in "\t\n ":
        text = text.replace(f"\\{ord(char):03o}", char)
    return text.replace("\\134", "\\")


def file_error(path: str, make_folders: bool = False) -> int:
    """The errno with which opening ``path`` for adding to it would end; 0 when it would succeed.

    ``make_folders``: missing folders would be made first.
    """
    if os.path.isdir(path) or path.endswith("/"):
        return errno.EISDIR
    try:
        kind = os.stat(path).st_mode
    except FileNotFoundError:
        return _new_file_error(path, make_folders)
    except OSError as error:
        return error.errno or errno.EIO
    if not stat.S_ISREG(kind):
        return 0 if os.access(path, os.W_OK, effective_ids=True) else errno.EACCES
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC))
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def _new_file_error(path: str, make_folders: bool) -> int:
    # Through links, as open() goes: the file is made where they lead.
    folder = os.path.dirname(os.path.realpath(path))
    if os.path.islink(path) and not os.path.isdir(folder):
        return errno.ENOENT
    while make_folders and not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    error = folder_error(folder)
    if error or len(os.fsencode(os.path.basename(path))) <= os.statvfs(folder).f_namemax:
        return error
    return errno.ENAMETOOLONG


def socket_error(path: str) -> int:
    """The errno with which binding a socket to ``path`` would end, once a dead one is removed."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return folder_error(os.path.dirname(os.path.abspath(path)), for_socket=True)
    except OSError as error:
        return error.errno or errno.EIO
    if not stat.S_ISSOCK(found.st_mode):
        return errno.EADDRINUSE
    folder = os.path.dirname(os.path.abspath(path))
    return listener_error(path) or folder_error(folder, True) or _removal_error(folder, found)


def _removal_error(folder: str, found: os.stat_result) -> int:
    """In a sticky folder only owners remove."""
    place = os.stat(folder)
    user = os.geteuid()
    ours = user in (0, place.st_uid, found.st_uid)
    return 0 if ours or not place.st_mode & stat.S_ISVTX else errno.EPERM


def listener_error(path: str) -> int:
    """EADDRINUSE while somebody has the stream socket ``path``, who does not notice; 0 if nobody.

    A datagram socket finds out: the kernel compares the kinds before it makes a connection.
    """
    import _socket

    probe = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
    try:
        probe.connect(path)
    except ConnectionRefusedError:
        return 0
    except OSError as error:
        return errno.EADDRINUSE if error.errno == errno.EPROTOTYPE else error.errno or errno.EIO
    finally:
        probe.close()
    return errno.EADDRINUSE
