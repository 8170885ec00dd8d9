"""Starts of a tiny guest by the new executable, and which pages of the snapshot they write to."""

from __future__ import annotations

import itertools
import os
import select
import signal
import struct
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vmm.bench.guests import pvh_elf

PAGE = 4096
KVM = "/dev/kvm"
# So many ranges fit into the executable (snapshot.h).
RANGES_MAX = 128
# What single starts write to differs by two or three pages: those that most of them write to count,
# so that two builds of the same agree.
REHEARSALS = 20
SECONDS = 20.0
POLL_SECONDS, RESTED_POLLS = 0.005, 10
PRESENT, OF_FILE = 1 << 63, 1 << 61
# Writes a byte to the serial port, and halts for ever (x86, 32 bits).
CODE = bytes.fromhex("66baf803 b02b ee f4 ebfd")


class RehearsalError(Exception):
    """A start of the new executable did not do what it should; the text says what it said."""


def environment(folder: Path) -> dict[str, str]:
    """Settings of a start as a service's: two images, a log, the serial port to be seen."""
    (folder / "guest.elf").write_bytes(pvh_elf(CODE))
    for image in ("system.img", "config.img"):
        (folder / image).write_bytes(bytes(1 << 20))
    values = {
        "KERNEL_FILEPATH": folder / "guest.elf",
        "SYSTEM_IMAGE_FILEPATH": folder / "system.img",
        "CONFIG_IMAGE_FILEPATH": folder / "config.img",
        "CPU_COUNT": 1,
        "MEMORY_CONFIG": "size=16M,shared=on",
        "SERIAL": "tty",
        "CONSOLE": "null",
        "LOG_FILEPATH": folder / "log",
    }
    found = {f"VLLMD_HYPERVISOR_{key}": str(value) for key, value in values.items()}
    return found | {"XDG_RUNTIME_DIR": str(folder), "XDG_CACHE_HOME": str(folder / "cache")}


def have_kvm() -> bool:
    """Whether anything can be started here."""
    return os.access(KVM, os.R_OK | os.W_OK)


class Rehearsals:
    """Starts of one executable, all in one folder; a context that removes it.

    ``executable`` must not get copies of its own accord.
    """

    def __init__(self, executable: Path) -> None:
        self._folder = tempfile.TemporaryDirectory()
        # Where it lies must make no difference, and the length of a path would.
        self.program = f"{self._folder.name}/executable"
        Path(self.program).symlink_to(executable.resolve())
        self._settings = environment(Path(self._folder.name))

    def __enter__(self) -> Rehearsals:
        # The first start of a kernel keeps what the next ones need to know of it.
        with self.start():
            return self

    def __exit__(self, *error: object) -> None:
        self._folder.cleanup()

    @contextmanager
    def start(
        self, *tool: str, seconds: float = SECONDS, pass_fds: tuple[int, ...] = (), **more: str
    ) -> Iterator[int]:
        """The process id of one whose guest runs, and which rests; RehearsalError.

        ``tool`` are words of a command that gets the program as its last words, ``more`` settings.
        """
        process = subprocess.Popen(
            [*tool, self.program, "start"], env={**self._settings, **more}, pass_fds=pass_fds,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            _await_rest(process, seconds)
            yield process.pid
        finally:
            process.kill()
            process.communicate()


def pages_written(executable: Path, start: int, length: int) -> list[int]:
    """Numbers of the snapshot's pages that starts write to, in order; RehearsalError.

    Empty where there is no KVM to start with.
    """
    counts: Counter[int] = Counter()
    if have_kvm():
        with Rehearsals(executable) as rehearsals:
            for _ in range(REHEARSALS):
                with rehearsals.start() as pid:
                    counts.update(_copied(pid, start, length))
    return sorted([page for page, count in counts.items() if count > REHEARSALS // 2])


def _await_rest(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Until the guest has said its byte, and the main thread has nothing more to do."""
    assert process.stdout is not None
    said, rested = b"", 0
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if select.select([process.stdout], [], [], POLL_SECONDS)[0]:
            said += os.read(process.stdout.fileno(), 4096)
        rested = rested + 1 if said == b"+" and _sleeps(process.pid) else 0
        if rested == RESTED_POLLS:
            return
        if said not in (b"", b"+") or process.poll() is not None:
            break
    raise RehearsalError(f"the new executable starts no guest: {said.decode(errors='replace')}")


def _sleeps(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


def _copied(pid: int, start: int, length: int) -> set[int]:
    """Pages that are no longer the file's (pagemap.rst)."""
    os.kill(pid, signal.SIGSTOP)
    with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as file:
        rows = os.pread(file.fileno(), length // PAGE * 8, start // PAGE * 8)
    flags = [row for (row,) in struct.iter_unpack("<Q", rows)]
    return {page for page, row in enumerate(flags) if row & PRESENT and not row & OF_FILE}


def ranges(pages: list[int]) -> list[tuple[int, int]]:
    """(first, count) of at most RANGES_MAX ranges with all the pages, and few others."""
    steps = sorted((after - page for page, after in itertools.pairwise(pages)), reverse=True)
    # Steps as wide as this one stay within a range.
    within = steps[RANGES_MAX - 1] if len(steps) >= RANGES_MAX else 1
    found: list[tuple[int, int]] = []
    for page in pages:
        first = found.pop()[0] if found and page + 1 - sum(found[-1]) <= within else page
        found.append((first, page + 1 - first))
    return found
