"""`dump`: a running guest's RAM and registers as a file, told on stderr while it takes long."""

from __future__ import annotations

import _signal
import os
import time

from vmm.command.output import complain, say
from vmm.debug.attach.dumping import dump as write_dump
from vmm.debug.attach.opening import Facts, attach_to, memory_of
from vmm.light.printable import visible

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmm.run.folder import Folder

TOLD_EACH_SECONDS = 3.0
MIB = 1 << 20


def dump(folder: Folder, path: str, live: bool = False) -> None:
    """Write ``path``, which is whole or not there. Whatever ends this lets the guest go on."""
    # As Ctrl-C: what has been written of the file is removed.
    for number in (_signal.SIGTERM, _signal.SIGHUP):
        _signal.signal(number, _signal.default_int_handler)
    link = attach_to(folder)
    try:
        facts = Facts(link)
        telling = Telling(folder.name, path)
        began = time.monotonic()
        size = write_dump(
            link, memory_of(link, facts), facts.vcpus, path, telling.progress, live
        )  # fmt: skip
        seconds = time.monotonic() - began
    finally:
        link.close()
    used = os.stat(path).st_blocks * 512
    still = (
        "the guest ran meanwhile" if live else f"the guest stood still for {telling.seconds:.1f} s"
    )
    say(
        f"{folder.name}: {visible(path)}: {size // MIB} MiB, {used // MIB} MiB of them on disk, in "
        f"{seconds:.1f} s; {still}"
    )


class Telling:
    """Tells on stderr how far it is, each few seconds."""

    def __init__(self, name: str, path: str) -> None:
        self._what = f"{name}: {visible(path)}"
        self._next = time.monotonic() + TOLD_EACH_SECONDS
        self._began = 0.0
        self.seconds = 0.0

    def progress(self, done: int, total: int) -> None:
        """So many bytes of RAM are done; none yet at the first call."""
        now = time.monotonic()
        if not done:
            self._began = now
        self.seconds = now - self._began
        if now >= self._next and done < total:
            self._next = now + TOLD_EACH_SECONDS
            complain([f"{self._what}: {done // MIB} of {total // MIB} MiB"])
