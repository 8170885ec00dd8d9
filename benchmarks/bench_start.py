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

from benchmarks.peers import Vmm, all_vmms
from tests.support.elf_builder import build_elf
from tests.support.guest_asm import Program

SERIAL = 0x3F8
LSR_READS = 100_000
FIRST, SECOND = b"<", b">"
WAIT_SECONDS = 20
RAM_MIN_KIB = 64 * 1024


def guest(folder: Path) -> Path:
    """Writes a byte, reads the LSR many times, writes another byte, halts for ever."""
    program = Program().out(SERIAL, FIRST[0])
    # mov ecx, n; mov dx, LSR; in al, dx; loop
    program.raw("b9" + LSR_READS.to_bytes(4, "little").hex() + "66bafd03 ec e2fd")
    program.out(SERIAL, SECOND[0]).raw("f4 ebfd")
    path = folder / "guest.elf"
    path.write_bytes(build_elf(bytes(program.code)))
    return path


class Run:
    """One start of one VMM: ms to the first byte, us per LSR read, KiB without guest RAM."""

    def __init__(self, vmm: Vmm) -> None:
        started = time.perf_counter()
        process = subprocess.Popen(
            vmm.command, env=vmm.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert process.stdout is not None
        try:
            first = self._until(process, FIRST)
            second = self._until(process, SECOND)
            self.start_ms = (first - started) * 1000
            self.read_us = (second - first) * 1e6 / LSR_READS
            self.pss_kib = pss_without_ram(process.pid)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
            process.stdout.close()

    def _until(self, process: subprocess.Popen[bytes], byte: bytes) -> float:
        assert process.stdout is not None
        deadline = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < deadline:
            if select.select([process.stdout], [], [], 1)[0]:
                data = os.read(process.stdout.fileno(), 1)
                now = time.perf_counter()
                if data == byte:
                    return now
                if not data:
                    break
        raise RuntimeError(f"{process.args}: no byte from the guest")


def pss_without_ram(pid: int) -> int:
    """KiB of proportional set size, without the mappings as large as guest RAM."""
    total = size = 0
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if line.startswith("Size:"):
            size = int(line.split()[1])
        elif line.startswith("Pss:") and size < RAM_MIN_KIB:
            total += int(line.split()[1])
    return total


def measure(
    peers: dict[str, str], rounds: int, mib: int, vcpus: int
) -> dict[str, dict[str, float]]:
    """Medians by VMM, interleaved; the first round is thrown away."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        vmms = all_vmms(peers, guest(folder), folder, mib, vcpus)
        runs: dict[str, list[Run]] = {vmm.name: [] for vmm in vmms}
        for number in range(rounds + 1):
            for vmm in vmms:
                run = Run(vmm)
                if number:
                    runs[vmm.name].append(run)
    return {
        name: {
            "start_ms": statistics.median(run.start_ms for run in some),
            "start_min_ms": min(run.start_ms for run in some),
            "lsr_read_us": statistics.median(run.read_us for run in some),
            "pss_mib": statistics.median(run.pss_kib for run in some) / 1024,
        }
        for name, some in runs.items()
    }


def report(title: str, found: dict[str, dict[str, float]], base: str = "QEMU microvm") -> None:
    """A table with ratios to ``base``."""
    print(f"\n{title}")
    keys = list(next(iter(found.values())))
    print(f"{'':20}" + "".join(f"{key:>16}" for key in keys) + f"{'start ratio':>14}")
    for name, row in found.items():
        ratio = row[keys[0]] / found[base][keys[0]] if base in found else float("nan")
        print(f"{name:20}" + "".join(f"{row[key]:16.2f}" for key in keys) + f"{ratio:14.2f}")


def main(peers: dict[str, str], rounds: int) -> dict[str, object]:
    small = measure(peers, rounds, 128, 1)
    report("128 MiB, 1 vCPU (medians)", small)
    large = measure(peers, max(3, rounds // 3), 16384, 4)
    report("16 GiB shared, 4 vCPUs (medians)", large)
    return {"small": small, "large": large}
