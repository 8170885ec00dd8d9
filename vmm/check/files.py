"""Checks of the files that a start opens: logs, consoles, images and their locks, the kernel.

Nothing is created, and no lock is taken. Problems are told in the words that `start` has for them.
"""

from __future__ import annotations

import errno
import os
import stat

from vmm.errors import GuestError, VmmError
from vmm.host.finding import Finding, of_error, problem, warning

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmm.settings.parse import Endpoint

    # From who holds something to the commands that end it, and whether root must run them.
    Stop = Callable[[list[int]], tuple[list[str], bool]]


def log_destinations(destinations: Sequence[str]) -> list[Finding]:
    """Every destination of the log can be opened."""
    from vmm.log.sinks import JOURNAL_SOCKET, STREAMS, SYSLOG_SOCKET, cannot_log
    from vmm.log.stream import unread_fifo

    sockets = {"journald": JOURNAL_SOCKET, "syslog": SYSLOG_SOCKET}
    findings = []
    for destination in destinations:
        why = ""
        if destination in sockets:
            why = "" if os.path.exists(sockets[destination]) else os.strerror(errno.ENOENT)
        elif destination not in STREAMS:
            why = output_error(destination, make_folders=True)
        if why:
            findings.append(of_error("log", cannot_log(destination, why)))
        elif lossy := unread_fifo(destination):
            findings.append(warning("log", f"{destination} is {lossy}", destination))
        else:
            findings.append(Finding("log", f"the log goes to {destination}", destination))
    return findings


def output_error(path: str, make_folders: bool = False) -> str:
    """Why text could not go to ``path``, in the words of the kernel or ours; empty when it can."""
    from vmm.log.stream import refusal

    why = refusal(path)
    if not why and (code := create_error(path, make_folders)):
        why = os.strerror(code)
    return why


def create_error(path: str, make_folders: bool = False) -> int:
    """The errno with which opening ``path`` for writing would end; 0 when it would succeed.

    ``make_folders``: missing folders would be made first.
    """
    if os.path.isdir(path):
        return errno.EISDIR
    if os.path.exists(path):
        return 0 if os.access(path, os.W_OK) else errno.EACCES
    folder = os.path.dirname(os.path.abspath(path))
    if folder.startswith(("/proc", "/sys")):
        return errno.ENOENT  # whatever the modes say, nobody makes files there
    while make_folders and not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    if not os.path.exists(folder):
        return errno.ENOENT
    if not os.path.isdir(folder):
        return errno.ENOTDIR
    return 0 if os.access(folder, os.W_OK | os.X_OK) else errno.EACCES


def consoles(ends: Sequence[tuple[str, Endpoint]], others: Sequence[str] = ()) -> list[Finding]:
    """Files and sockets of (name, console end) can be made; ``others`` are files in use."""
    from vmm.log.stream import unread_fifo

    findings = []
    sockets: list[str] = []
    for name, end in ends:
        told = f"{name} is {end.kind}{f' {end.path}' if end.path else ''}"
        try:
            _console(end, sockets, others)
        except VmmError as failure:
            findings.append(of_error("console", failure))
            continue
        if end.kind == "file" and (lossy := unread_fifo(end.path)):
            findings.append(warning("console", f"{told}, {lossy}", name))
        else:
            findings.append(Finding("console", told, name))
    return findings


def _console(end: Endpoint, sockets: list[str], others: Sequence[str]) -> None:
    """VmmError when a console's end cannot be made; ``sockets`` collects those seen so far."""
    from vmm.host.console import cannot_open_file, cannot_rotate, overwritten
    from vmm.host.console_socket import cannot_listen, check_socket_path

    if end.kind == "file" and (why := output_error(end.path)):
        raise cannot_open_file(end.path, why)
    if taken := overwritten(end, others):
        raise cannot_rotate(end.path, taken)
    if end.kind == "socket":
        check_socket_path(end.path)
        twice = os.path.realpath(end.path) in sockets
        if code := errno.EADDRINUSE if twice else _socket_error(end.path):
            raise cannot_listen(end.path, os.strerror(code))
        sockets.append(os.path.realpath(end.path))


def _socket_error(path: str) -> int:
    """As create_error(), for a socket: a stale one is removed first, nothing else is."""
    from vmm.host.console_socket import socket_error

    return socket_error(path) or create_error(os.path.join(os.path.dirname(path), ".new"))


def image_locks(system: Sequence[str], config: Sequence[str], stop: Stop) -> list[Finding]:
    """Nobody else has the images in use, as far as they open; who has is told by pid."""
    findings = []
    for path, read_only in [*[(p, False) for p in system], *[(p, True) for p in config]]:
        # Read-only: whoever has opened a block device for writing makes udev look into it anew.
        try:
            kind = os.stat(path).st_mode
            if not (stat.S_ISREG(kind) or stat.S_ISBLK(kind)):
                continue
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            continue  # the image's own finding tells
        try:
            findings.append(_image_lock(path, fd, read_only, stop))
        finally:
            os.close(fd)
    return findings


def _image_lock(path: str, fd: int, read_only: bool, stop: Stop) -> Finding:
    from vmm.host.disk import SECTOR, too_small
    from vmm.host.image_lock import busy, lock_holders, would_lock

    if not would_lock(fd, read_only):
        holders = lock_holders(os.fstat(fd))
        error = busy(path, holders)
        commands, as_root = stop(holders)
        return problem(
            "image-lock", error.problem, path, cure=commands, as_root=as_root,
            advice=error.remedy, code=error.exit_code,
        )  # fmt: skip
    size = os.lseek(fd, 0, os.SEEK_END)
    if size < SECTOR:
        return of_error("image-lock", too_small(path, size), path)
    return Finding("image-lock", f"{path} is not in use by others", path)


def kernel(path: str, initramfs: str | None) -> list[Finding]:
    """The kernel is of a kind that can be booted, and the initramfs has content."""
    from vmm.boot.kernel import empty_initramfs, open_plan

    findings = []
    try:
        fd, plan = open_plan(path, None)
        os.close(fd)
        told = f"{path}: {plan.kind}, entry {plan.entry:#x}, up to {plan.end:#x}"
        findings.append(Finding("kernel", told, path))
    except GuestError as error:
        findings.append(of_error("kernel", error, path))
    if initramfs and os.path.isfile(initramfs) and not os.path.getsize(initramfs):
        findings.append(of_error("kernel", empty_initramfs(initramfs), initramfs))
    return findings
