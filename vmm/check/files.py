"""Checks of the files that a start opens: logs, consoles, images and their locks, the kernel.

Nothing is created, and no lock is taken. Problems are told in the words that `start` has for them.
"""

from __future__ import annotations

import errno
import os

from vmm.errors import GuestError, HostError, VmmError, about
from vmm.host.finding import Finding, of_error, problem, warning
from vmm.host.places import file_error, socket_error
from vmm.layout import PHYS_BITS_MAX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmm.settings.images import ImageSpec
    from vmm.settings.parse import Endpoint

    # From who holds something to the commands that end it, and whether root must run them.
    Stop = Callable[[list[int]], tuple[list[str], bool]]

PTY_MAKER = "/dev/ptmx"
DAEMONS = ("journald", "syslog")
# Where the size of RAM is not known: everything fits.
RAM_ANY = 1 << PHYS_BITS_MAX


def log_destinations(destinations: Sequence[str]) -> list[Finding]:
    """Every destination of the log can be opened."""
    from vmm.log.sinks import STREAMS, cannot_log
    from vmm.log.stream import unread_fifo

    findings = []
    for destination in destinations:
        why = ""
        if destination in DAEMONS:
            why = _daemon_error(destination)
        elif destination not in STREAMS:
            why = _output_error(destination, make_folders=True)
        if why:
            findings.append(of_error("log", cannot_log(destination, why)))
        elif lossy := unread_fifo(destination):
            findings.append(warning("log", f"{destination} is {lossy}", destination))
        else:
            findings.append(Finding("log", f"the log goes to {destination}", destination))
    return findings


def _output_error(path: str, make_folders: bool = False) -> str:
    """Why text could not go to ``path``, in the words of the kernel or ours; empty when it can."""
    from vmm.log.stream import refusal

    why = refusal(path)
    if not why and (code := file_error(path, make_folders)):
        why = os.strerror(code)
    return why


def _daemon_error(destination: str) -> str:
    """Connected as a start does it, with nothing said."""
    from vmm.log.sinks import open_sink

    try:
        open_sink(destination).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def consoles(ends: Sequence[tuple[str, Endpoint]], others: Sequence[str] = ()) -> list[Finding]:
    """Files and sockets of (name, console end) can be made; ``others`` are files in use."""
    from vmm.log.stream import unread_fifo

    findings = []
    sockets: list[str] = []
    for name, end in ends:
        try:
            _check_console(end, sockets, others)
        except VmmError as error:
            findings.append(of_error("console", about(name.upper(), error), name))
            continue
        told = f"{name} is {end.kind}{f' {end.path}' if end.path else ''}"
        if end.kind == "file" and (lossy := unread_fifo(end.path)):
            findings.append(warning("console", f"{told}, {lossy}", name))
        else:
            findings.append(Finding("console", told, name))
    return findings


def _check_console(end: Endpoint, sockets: list[str], others: Sequence[str]) -> None:
    """Raises what a start would raise. ``sockets``: those that it would have made before."""
    from vmm.host.console import cannot_open_file, cannot_rotate, overwritten
    from vmm.host.console_socket import cannot_listen, check_socket_path

    if end.kind == "pty" and not os.access(PTY_MAKER, os.R_OK | os.W_OK):
        raise HostError(f"no pseudo-terminals: {PTY_MAKER} cannot be opened", "mount devpts")
    if end.kind == "file" and (why := _output_error(end.path)):
        raise cannot_open_file(end.path, why)
    if taken := overwritten(end, others):
        raise cannot_rotate(end.path, taken)
    if end.kind == "socket":
        check_socket_path(end.path)
        real = os.path.realpath(end.path)
        code = errno.EADDRINUSE if real in sockets else socket_error(end.path)
        if code:
            raise cannot_listen(end.path, os.strerror(code))
        sockets.append(real)


def image_lock(image: ImageSpec, read_only: bool, stop: Stop) -> list[Finding]:
    """The image opens, and nobody else has it in use; who has is told by pid."""
    from vmm.host.disk import is_image, open_image

    path = image.path
    usable = os.access(path, os.R_OK if read_only else os.R_OK | os.W_OK)
    if not usable or not is_image(os.stat(path).st_mode):
        return []  # told by the image's own finding
    try:
        fd = open_image(path, read_only, probe=True)
    except VmmError as error:
        return [of_error("image-lock", error, path)]
    try:
        return [_image_lock(path, fd, read_only, stop), *_direct(image, fd)]
    finally:
        os.close(fd)


def _direct(image: ImageSpec, fd: int) -> list[Finding]:
    """Direct I/O, where it is wanted: tried on our own descriptor, which is closed afterwards."""
    if not image.direct:
        return []
    from vmm.host.direct import turn_on

    path = image.path
    try:
        memory, file = turn_on(path, fd, os.lseek(fd, 0, os.SEEK_END))
    except HostError as error:
        return [of_error("image-direct", error, path)]
    told = f"{path}: direct I/O, buffers aligned to {memory} bytes, blocks of {file}"
    return [Finding("image-direct", told, path)]


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


def kernel(path: str, initramfs: str | None, cmdline: str | None, ram: int | None) -> list[Finding]:
    """The kernel can be booted, with this initramfs, command line and size of RAM.

    None for a setting that is not known.
    """
    from vmm.boot.kernel import check_payload, open_plan

    try:
        fd, plan = open_plan(path, None)
        os.close(fd)
        check_payload(plan, path, cmdline or "", initramfs, RAM_ANY if ram is None else ram)
    except GuestError as error:
        return [of_error("kernel", error, path)]
    told = f"{path}: {plan.kind}, entry {plan.entry:#x}, up to {plan.end:#x}"
    return [Finding("kernel", told, path)]
