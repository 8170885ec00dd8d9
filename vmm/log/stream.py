"""Output that never makes its writer wait: standard streams, terminals, FIFOs and files.

A terminal that is stopped (Ctrl-S), a pipe that nobody reads: a write waits for them, and the
guest, its shutdown and this process would wait with it. O_NONBLOCK belongs to the open file, which
a standard stream shares with our parent, so they are opened anew.
"""

from __future__ import annotations

import errno
import os
import stat
import time

from vmm._native.host.posix import write_now

OUTPUT_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
OUTPUT_MODE = 0o640
# asm-generic/ioctls.h: the device number of a terminal, whatever file it was opened by.
TIOCGDEV = 0x80045432
# What a pipe takes at once when poll() says that it is writable (pipe(7)).
PIPE_BUF = 4096


def is_terminal(fd: int) -> bool:
    """False for what is closed or has hung up, too."""
    try:
        return os.isatty(fd)
    except OSError:
        return False


def can_wait(fd: int) -> bool:
    """Whether a write to ``fd`` can wait for a reader: terminals and pipes."""
    try:
        return stat.S_ISFIFO(os.fstat(fd).st_mode) or is_terminal(fd)
    except OSError:
        return False


def open_anew(fd: int, mode: int = os.O_WRONLY) -> int:
    """A descriptor of our own for a terminal or pipe, which never waits; -1 when there is none.

    Another user's terminal or pipe (su, sudo) cannot be opened, but the terminal that this process
    is controlled from can.
    """
    if not can_wait(fd):
        return -1
    flags = mode | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        return os.open(f"/proc/self/fd/{fd}", flags)
    except OSError:
        return _controlling_terminal(fd, flags) if is_terminal(fd) else -1


def _controlling_terminal(fd: int, flags: int) -> int:
    import fcntl

    try:
        own = os.open("/dev/tty", flags)
    except OSError:
        return -1
    try:
        if fcntl.ioctl(own, TIOCGDEV, bytes(4)) == fcntl.ioctl(fd, TIOCGDEV, bytes(4)):
            return own
    except OSError:
        pass  # one of them has hung up
    os.close(own)
    return -1


def open_output(path: str) -> int:
    """Open a file, FIFO or character device for output, without waiting for anybody; OSError.

    A FIFO is opened for reading as well, so that its reader may come later, and go and come back.
    """
    try:
        fd = os.open(path, OUTPUT_FLAGS, OUTPUT_MODE)
    except OSError as error:
        if error.errno != errno.ENXIO or not _is_fifo(path):
            raise OSError(error.errno, refusal(path) or error.strerror) from error
        fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    if stat.S_ISBLK(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, refusal(path))
    return fd


def _is_fifo(path: str) -> bool:
    try:
        return stat.S_ISFIFO(os.stat(path).st_mode)
    except OSError:
        return False


def refusal(path: str) -> str:
    """Why ``path`` is of a kind that text cannot go to; empty when it is not there, or fine."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return ""
    if stat.S_ISDIR(mode):
        return os.strerror(errno.EISDIR)
    if stat.S_ISBLK(mode):
        return "it is a block device, and would be overwritten"
    if stat.S_ISSOCK(mode):
        return "it is a socket, not a file"
    return ""


def unread_fifo(path: str) -> str:
    """For a FIFO: what must be known about it, as asking for its readers would disturb them."""
    return "a FIFO: what nobody reads in time is lost" if _is_fifo(path) else ""


def tell(fd: int, text: str, seconds: float = 1.0) -> None:
    """Write ``text``, waiting for a reader for at most so long; what nobody takes is lost."""
    import select

    own = open_anew(fd)
    data = text.encode(errors="replace")
    deadline = time.monotonic() + seconds
    try:
        poll = select.poll()
        poll.register(fd if own < 0 else own, select.POLLOUT)
        while data and (left := deadline - time.monotonic()) > 0:
            if not poll.poll(left * 1000):
                return
            data = data[_write_some(fd if own < 0 else own, data) :]
    except OSError:
        return
    finally:
        if own >= 0:
            os.close(own)


def _write_some(fd: int, data: bytes) -> int:
    try:
        return write_now(fd, data[:PIPE_BUF])
    except BlockingIOError:
        # A terminal with room for a byte says that it is writable, but takes no line feed.
        time.sleep(0.01)
        return 0
