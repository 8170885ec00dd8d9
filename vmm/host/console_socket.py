"""A Unix socket of a console or a debugger: who may use it, and whether somebody does."""

from __future__ import annotations

import errno
import os

from vmm.errors import HostError
from vmm.host.places import listener_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SUN_PATH_MAX = 107
SOCKET_MODE = 0o600
CONSOLE_SOCKET = "console socket"


def listen(path: str, what: str = CONSOLE_SOCKET) -> Any:
    """A socket that listens at ``path``, for our user alone from its first moment; HostError."""
    import _socket

    check_socket_path(path, what)
    listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        code = _taken(path)
        if code:
            raise OSError(code, os.strerror(code))
        if os.path.lexists(path):
            os.unlink(path)  # its owner is gone
        # The kernel makes the file with the mode of the socket (net/unix/af_unix.c, unix_bind).
        os.fchmod(listener.fileno(), SOCKET_MODE)
        listener.bind(path)
        listener.listen(1)
    except OSError as error:
        listener.close()
        raise cannot_listen(path, error.strerror, what) from error
    listener.setblocking(False)
    return listener


def identity(path: str) -> tuple[int, int] | None:
    """Which file has this name: (device, inode); None for none."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def take_away(path: str, made: tuple[int, int] | None) -> None:
    """Unlink a socket that was ``made`` here, unless its name is another file's by now."""
    # Somebody may have removed it, and another VM may have made one of the same name.
    if made is not None and identity(path) == made:
        os.unlink(path)


def _taken(path: str) -> int:
    """0 when nothing is at ``path`` but perhaps a socket that nobody has; else an errno."""
    import stat

    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return errno.EADDRINUSE
    except FileNotFoundError:
        return 0
    except OSError as error:
        return error.errno or errno.EIO
    return listener_error(path)


def check_socket_path(path: str, what: str = CONSOLE_SOCKET) -> None:
    """HostError when it is longer than a socket's address can be."""
    length = len(os.fsencode(path))
    if length > SUN_PATH_MAX:
        raise HostError(
            f"the {what} {path} has a path of {length} bytes; {SUN_PATH_MAX} are possible",
            "use a shorter path",
        )


def cannot_listen(path: str, why: str | None, what: str = CONSOLE_SOCKET) -> HostError:
    """The error for a socket that cannot be made."""
    return HostError(
        f"cannot listen on the {what} {path}: {why}",
        "check its directory, or that no other program uses it",
    )
