"""Finds the pages of the snapshot that a start writes to, by starting a tiny guest."""

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


def pages_written(executable: Path, start: int, length: int) -> list[int]:
    """Numbers of the snapshot's pages that starts write to, in order; RehearsalError.

    ``executable`` must not get copies of its own accord. Empty where there is no KVM to start with.
    """
    if not os.access(KVM, os.R_OK | os.W_OK):
        return []
    with tempfile.TemporaryDirectory() as name:
        # Where it lies must make no difference, and the length of a path would.
        command, settings = [f"{name}/executable", "start"], environment(Path(name))
        Path(command[0]).symlink_to(executable.resolve())
        # The first start of a kernel keeps what the next ones need to know of it.
        found = [_one_start(command, settings, start, length) for _ in range(REHEARSALS + 1)][1:]
    counts = Counter(itertools.chain.from_iterable(found))
    return sorted([page for page, count in counts.items() if count > REHEARSALS // 2])


def _one_start(command: list[str], settings: dict[str, str], start: int, length: int) -> set[int]:
    process = subprocess.Popen(
        command, env=settings, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        _await_rest(process)
        return _copied(process.pid, start, length)
    finally:
        process.kill()
        process.communicate()


def _await_rest(process: subprocess.Popen[bytes]) -> None:
    """Until the guest has said its byte, and the main thread has nothing more to do."""
    assert process.stdout is not None
    said, rested = b"", 0
    deadline = time.monotonic() + SECONDS
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
