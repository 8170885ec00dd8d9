"""A disk of ours, asked by its driver alone, beside fio on the same file: requests, CPU, ratios.

Rounds are interleaved, who comes first changes; a ratio is the median of the rounds' own. A guest
that waits keeps a processor busy (KVM looks for its interrupt), and a virtual machine's storage may
be slower then: fio is asked again beside a process that does nothing else.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.diskrig import DiskRig, library
from vmm.host.disk import Disk
from vmm.settings.images import ImageSpec

FILE_BYTES = 1 << 30
CACHED_BYTES = 64 << 20
SECONDS = 1.0
Row = dict[str, Any]


class Round(NamedTuple):
    """What was found one after the other; the last is fio's beside a busy processor."""

    ours: Row
    fio: Row
    beside: Row


# Name; bytes of a request, how many under way, whether past the page cache, in order, cached; the
# aim of ours to fio's.
QUESTIONS: dict[str, tuple[int, int, bool, bool, bool, float]] = {
    "4 KiB direct, depth 1": (4096, 1, True, False, False, 1.2),
    "4 KiB direct, depth 32": (4096, 32, True, False, False, 1.0),
    "4 KiB cached, depth 1": (4096, 1, False, False, True, 1.2),
    "4 KiB cached, depth 32": (4096, 32, False, False, True, 1.0),
    "1 MiB direct, depth 8": (1 << 20, 8, True, True, False, 1.0),
    "1 MiB cold, page cache, depth 8": (1 << 20, 8, False, True, False, 1.0),
}


def fio(path: Path, name: str) -> Row:
    """The same question to fio: requests per second, CPU in us of each."""
    block, depth, direct, in_order, cached, _ = QUESTIONS[name]
    command = [
        "fio", "--name=disk", f"--filename={path}", "--ioengine=io_uring", f"--bs={block}",
        f"--iodepth={depth}", f"--direct={int(direct)}", f"--rw={'' if in_order else 'rand'}read",
        f"--size={CACHED_BYTES if cached else FILE_BYTES}", f"--runtime={SECONDS}s", "--time_based",
        f"--invalidate={int(not cached)}", "--output-format=json", "--allow_file_create=0",
    ]  # fmt: skip
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    job = json.loads(done.stdout)["jobs"][0]
    busy = (job["usr_cpu"] + job["sys_cpu"]) / 100 * job["job_runtime"] * 1e3
    return {"iops": job["read"]["iops"], "cpu_us": busy / job["read"]["total_ios"]}


@contextmanager
def a_busy_processor() -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def ours(rig: DiskRig, name: str) -> Row:
    block, depth, _, in_order, cached, _ = QUESTIONS[name]
    if not cached:
        os.posix_fadvise(rig.disk.fd, 0, 0, os.POSIX_FADV_DONTNEED)
    return rig.run(
        SECONDS, block=block, depth=depth, sequential=int(in_order),
        bytes=CACHED_BYTES if cached else FILE_BYTES, halt_poll=halt_poll(),
    )  # fmt: skip


def halt_poll() -> float:
    """Seconds that KVM waits for an interrupt before a vCPU's thread sleeps."""
    told = Path("/sys/module/kvm/parameters/halt_poll_ns")
    return (int(told.read_text()) if told.exists() else 200_000) * 1e-9


@contextmanager
def rigs(path: Path, folder: Path) -> Iterator[dict[bool, DiskRig]]:
    """By whether they go past the page cache; read-only, so that both and fio may have the file."""
    lib = library(folder)
    found: dict[bool, DiskRig] = {}
    try:
        for direct in (False, True):
            disk = Disk.of(ImageSpec(str(path), direct=direct), read_only=True)
            found[direct] = DiskRig(lib, disk)
        yield found
    finally:
        for rig in found.values():
            rig.close()


def make_file(path: Path) -> None:
    """Written, so that nothing of it is a hole."""
    piece = os.urandom(1 << 20)
    with open(path, "wb") as file:
        for _ in range(FILE_BYTES >> 20):
            file.write(piece)
        os.fsync(file.fileno())


def measure(rounds: int, folder: Path) -> dict[str, Row]:
    path = folder / "disk.img"
    make_file(path)
    rows = {}
    with rigs(path, folder) as found:
        for name, (_, _, direct, _, _, aim) in QUESTIONS.items():
            done = [one_round(found[direct], path, name, n % 2 == 1) for n in range(rounds + 1)]
            rows[name] = row(done[1:], aim)
    return rows


def one_round(rig: DiskRig, path: Path, name: str, fio_first: bool) -> Round:
    if fio_first:
        theirs = fio(path, name)
        own = ours(rig, name)
    else:
        own = ours(rig, name)
        theirs = fio(path, name)
    with a_busy_processor():
        return Round(own, theirs, fio(path, name))


def row(rounds: list[Round], aim: float) -> Row:
    ratios = sorted(one.ours["iops"] / one.fio["iops"] for one in rounds)
    return {
        "iops": statistics.median(one.ours["iops"] for one in rounds),
        "fio_iops": statistics.median(one.fio["iops"] for one in rounds),
        "to_fio": statistics.median(ratios),
        "lowest": ratios[0],
        "highest": ratios[-1],
        "to_fio_beside": statistics.median(one.ours["iops"] / one.beside["iops"] for one in rounds),
        "aim": aim,
        "worker_us": min(one.ours["worker_us"] for one in rounds),
        "driver_us": min(one.ours["driver_us"] for one in rounds),
        "fio_cpu_us": min(one.fio["cpu_us"] for one in rounds),
    }


def main(rounds: int, place: str | None = None) -> dict[str, Row]:
    """``place``: a folder on the file system to ask."""
    if shutil.which("fio") is None:
        print("\ndisk: no fio to compare with (apt-get install fio)")
        return {"disk": {"error": "no fio"}}
    with tempfile.TemporaryDirectory(dir=place) as name:
        rows = measure(rounds, Path(name))
    print(f"\ndisk: requests per second, and CPU of each in us (minima of {rounds} rounds)")
    heads = ("ours", "fio", "ratio", "(from - to)", "aim", "worker", "driver", "fio", "beside")
    widths = (10, 10, 8, 15, 6, 9, 9, 9, 9)
    print(" " * 34 + "".join(f"{head:>{n}}" for head, n in zip(heads, widths, strict=True)))
    for name, told in rows.items():
        spread = f"({told['lowest']:.2f} - {told['highest']:.2f})"
        print(
            f"{name:34}{told['iops']:10,.0f}{told['fio_iops']:10,.0f}{told['to_fio']:8.2f}"
            f"{spread:>15}{told['aim']:6.1f}{told['worker_us']:9.1f}{told['driver_us']:9.1f}"
            f"{told['fio_cpu_us']:9.1f}{told['to_fio_beside']:9.2f}"
            f"{'' if told['to_fio'] >= told['aim'] else '  missed'}"
        )
    direct, cached = rows["1 MiB direct, depth 8"], rows["1 MiB cold, page cache, depth 8"]
    saved = direct["worker_us"] / cached["worker_us"]
    print("beside: ratio to fio while another processor is busy, as a guest that waits keeps it")
    print(f"worker CPU of a cold MiB, direct to page cache: {saved:.2f} (aim: at most 0.25)")
    return rows
