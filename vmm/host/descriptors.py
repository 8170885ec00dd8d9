"""What a machine has open: how many descriptors, and room for them while there is one thread."""

from __future__ import annotations

import fcntl
import os

from vmm.layout import disk_queues

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmm.settings.images import ImageSpec

# Standard streams, KVM, its lock, sockets, event loop, lines, consoles.
BASE = 24
# Most that a table has without being enlarged (linux/fdtable.h, NR_OPEN_DEFAULT).
SMALLEST = 64
# Room for interrupts, of which a guest makes as many as it likes, in this many times the need.
SPARE = 4


def needed(vcpus: int, images: Iterable[ImageSpec]) -> int:
    """So many are open when a guest starts, without those of devices passed through."""
    disks = sum([2 + 2 * disk_queues(vcpus, image.queues) for image in images])
    return BASE + 2 * vcpus + disks


def make_room(vcpus: int, images: Iterable[ImageSpec]) -> None:
    """Have the kernel enlarge this process's table of descriptors now. Before any other thread.

    Once there are threads it waits, at each doubling, until every processor has let go of the old
    table: 25 ms on a host of 16, for the start of 16 vCPUs as for a guest that uses one interrupt
    more (expand_fdtable() in Linux, fs/file.c). Less room where RLIMIT_NOFILE allows no more.
    """
    room = SPARE * needed(vcpus, images)
    fd = os.eventfd(0, os.EFD_CLOEXEC)
    try:
        while room > SMALLEST:
            try:
                os.close(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, room - 1))
                return
            except OSError:
                room //= 2
    finally:
        os.close(fd)
