"""exec to the guest's first serial byte, memory of the VMM, and what an exit costs."""

from __future__ import annotations

import os
import select
import signal
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.peers import Vmm, all_vmms
from tests.support.elf_builder import build_elf
from tests.support.guest_asm import Program
from vmm.bench.procfs import memory_kib

SERIAL = 0x3F8
LSR_READS = 100_000
FIRST, SECOND = b"<", b">"
WAIT_SECONDS = 20
KEYS = ("start_ms", "start_min_ms", "lsr_read_us", "pss_mib")
# Figures by their keys, or "error" with the reason.
Row = dict[str, Any]
Table = dict[str, Row]


def guest(folder: Path) -> Path:
    """Writes a byte, reads the LSR many times, writes another byte, halts for ever."""
    program = Program().out(SERIAL, FIRST[0])
    # mov ecx, n; mov dx, LSR; in al, dx; loop
    program.raw("b9" + LSR_READS.to_bytes(4, "little").hex() + "66bafd03 ec e2fd")
    program.out(SERIAL, SECOND[0]).raw("f4 ebfd")
    path = folder / "guest.elf"
    path.write_bytes(build_elf(bytes(program.code)))
    return path


class ContenderError(Exception):
    """A VMM did not do what is measured; the text says what it did."""


class Run:
    """One start of one VMM: ms to the first byte, us per LSR read, KiB without guest RAM."""

    def __init__(self, vmm: Vmm) -> None:
        if vmm.problem:
            raise ContenderError(vmm.problem)
        with tempfile.TemporaryFile() as self._words:
            started = time.perf_counter()
            try:
                process = subprocess.Popen(
                    vmm.command, env=vmm.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                    stderr=self._words,
                )  # fmt: skip
            except OSError as error:
                raise ContenderError(f"{vmm.command[0]}: {error.strerror}") from error
            assert process.stdout is not None
            try:
                first = self._until(process, FIRST)
                second = self._until(process, SECOND)
                self.pss_kib = memory_kib(process.pid)["pss"]
            finally:
                process.send_signal(signal.SIGKILL)
                process.wait()
                process.stdout.close()
        self.start_ms = (first - started) * 1000
        self.read_us = (second - first) * 1e6 / LSR_READS

    def _until(self, process: subprocess.Popen[bytes], byte: bytes) -> float:
        assert process.stdout is not None
        deadline = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < deadline:
            if select.select([process.stdout], [], [], 0.1)[0]:
                data = os.read(process.stdout.fileno(), 1)
                now = time.perf_counter()
                if data == byte:
                    return now
                if not data:
                    raise ContenderError(f"{end_of(process)}{self._last_words()}")
        raise ContenderError(f"no {byte!r} within {WAIT_SECONDS} s{self._last_words()}")

    def _last_words(self) -> str:
        """The last line on its stderr."""
        self._words.seek(0)
        lines = self._words.read().decode(errors="replace").strip().splitlines()
        return f": {lines[-1]}" if lines else ""


def end_of(process: subprocess.Popen[bytes]) -> str:
    """How a process ended that closed its output."""
    try:
        code = process.wait(1)
    except subprocess.TimeoutExpired:
        return "closed its output"
    return f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


def measure(peers: dict[str, str], rounds: int, mib: int, vcpus: int) -> Table:
    """Medians by VMM, interleaved; the first round is thrown away."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        return race(all_vmms(peers, guest(folder), folder, mib, vcpus), rounds)


def race(vmms: list[Vmm], rounds: int) -> Table:
    """A row for each VMM: medians, or why there are none. A failure ends only its own runs."""
    runs: dict[str, list[Run]] = {vmm.name: [] for vmm in vmms}
    failures: dict[str, str] = {}
    for number in range(rounds + 1):
        for vmm in vmms:
            if vmm.name in failures:
                continue
            try:
                run = Run(vmm)
            except ContenderError as error:
                failures[vmm.name] = f"in round {number}: {error}" if number else str(error)
                continue
            if number:
                runs[vmm.name].append(run)
    return {
        name: {"error": failures[name]} if name in failures else medians(some)
        for name, some in runs.items()
    }


def medians(runs: list[Run]) -> Row:
    return {
        "start_ms": statistics.median(run.start_ms for run in runs),
        "start_min_ms": min(run.start_ms for run in runs),
        "lsr_read_us": statistics.median(run.read_us for run in runs),
        "pss_mib": statistics.median(run.pss_kib for run in runs) / 1024,
    }


def report(title: str, found: Table, base: str = "QEMU microvm") -> None:
    """A table with ratios to ``base``, as far as it was measured."""
    print(f"\n{title}")
    print(f"{'':20}" + "".join(f"{key:>16}" for key in KEYS) + f"{'start ratio':>14}")
    against = found.get(base, {}).get(KEYS[0])
    for name, row in found.items():
        if "error" in row:
            print(f"{name:20}  failed: {row['error']}")
            continue
        ratio = f"{row[KEYS[0]] / against:14.2f}" if against else f"{'-':>14}"
        print(f"{name:20}" + "".join(f"{row[key]:16.2f}" for key in KEYS) + ratio)


def main(peers: dict[str, str], rounds: int) -> dict[str, object]:
    small = measure(peers, rounds, 128, 1)
    report("128 MiB, 1 vCPU (medians)", small)
    large = measure(peers, max(3, rounds // 3), 16384, 4)
    report("16 GiB shared, 4 vCPUs (medians)", large)
    return {"small": small, "large": large}
