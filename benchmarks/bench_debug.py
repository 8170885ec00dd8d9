"""What a debugger does most, by four ways: our Python API, our gdb stub, C, QEMU's gdb stub.

A breakpoint's hit with an empty action, a single step, a port's hook in Python, reading registers;
and 1 GiB of guest RAM looked through by numpy, beside a file in /dev/shm. Batches of all ways are
interleaved; C makes the same ioctls and nothing else. Both stubs are asked by one client.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import contenders
from benchmarks.bench_snapshot import undisturbed
from benchmarks.bench_start import ContenderError
from benchmarks.contenders import Api, Program, elf, our_stub, qemu_stub
from vmm.debug.guest import Guest
from vmm.layout import MIB

COUNT = 50
API, STUB, C, QEMU = "Python API", "our gdb stub", "C, the same ioctls", "QEMU's gdb stub"
WAYS: dict[str, Callable[[Path], Any]] = {API: Api, STUB: our_stub, C: Program, QEMU: qemu_stub}
QUESTIONS = {
    "break": ("breakpoint hit, empty action", (API, STUB, C, QEMU)),
    "step": ("single step", (API, STUB, C, QEMU)),
    "registers": ("registers read", (API, STUB, C, QEMU)),
    "port": ("port hook in Python", (API, C)),
}
KEYS = [(what, way) for what, (_, ways) in QUESTIONS.items() for way in ways]
SCAN_MIB = 1024
SCAN, FILE = "guest.memory.numpy", "a file in /dev/shm"
# By question and way: figures, or {"error": why there are none}.
Row = dict[str, Any]
Table = dict[str, dict[str, Row]]


def measure(rounds: int, count: int = COUNT) -> Table:
    """All questions but the scan; a way that fails is a row that says why."""
    times: dict[tuple[str, str], list[float]] = {}
    failures: dict[tuple[str, str], str] = {}
    with tempfile.TemporaryDirectory() as name:
        ready = opened(Path(name), failures)
        try:
            for number in range(rounds + 1):
                for key in [key for key in KEYS if key not in failures]:
                    what, way = key
                    try:
                        us = ready[way].batch(what, count)
                    except ContenderError as error:
                        failures[key] = str(error)
                        continue
                    if number:
                        times.setdefault(key, []).append(us)
        finally:
            for one in ready.values():
                one.close()
    found: Table = {what: {} for what in QUESTIONS}
    for what, way in KEYS:
        found[what][way] = row(times.get((what, way)), failures.get((what, way)))
    return found


def opened(folder: Path, failures: dict[tuple[str, str], str]) -> dict[str, Any]:
    """The ways that are there; why others are not goes to ``failures``."""
    ready: dict[str, Any] = {}
    for way, make in WAYS.items():
        try:
            ready[way] = make(folder)
        except ContenderError as error:
            problem = str(error)
        except (OSError, subprocess.CalledProcessError) as error:
            problem = f"cannot be built: {error}"
        if way not in ready:
            failures.update({key: problem for key in KEYS if key[1] == way})
    return ready


def row(times: list[float] | None, problem: str | None) -> Row:
    """Median and minimum, or what went wrong."""
    if problem or not times:
        return {"error": problem or "not measured"}
    return {"us": statistics.median(times), "min_us": min(times)}


def measure_scan(rounds: int, mib: int = SCAN_MIB) -> dict[str, Row]:
    """Seconds for the largest of all words, of guest RAM and of a file as large, both written."""
    import numpy

    size = mib * MIB
    with tempfile.TemporaryDirectory() as name, tempfile.TemporaryFile(dir="/dev/shm") as file:
        kernel = elf(Path(name), "loop", contenders.LOOP)
        with Guest(kernel=kernel, memory=f"{mib}M") as guest:
            os.truncate(file.fileno(), size)
            arrays = {
                SCAN: guest.memory.numpy(0, size // 8, "uint64"),
                FILE: numpy.memmap(file, "uint64", "r+"),
            }
            times: dict[str, list[float]] = {way: [] for way in arrays}
            for array in arrays.values():
                array[:] = 1
            for number in range(rounds + 1):
                for way, array in arrays.items():
                    started = time.perf_counter()
                    array.max()
                    if number:
                        times[way].append((time.perf_counter() - started) * 1e6)
            del array
            arrays.clear()
    return {way: row(some, None) for way, some in times.items()}


def show(title: str, rows: dict[str, Row], base: str) -> None:
    """One question's lines; the ratio is of the minima, which a busy host does not reach."""
    print(f"\n{title}, microseconds: median, minimum, ratio to {base}")
    least = rows[base].get("min_us")
    for way, one in rows.items():
        if "error" in one:
            print(f"  {way:20} {one['error']}")
            continue
        ratio = f"{one['min_us'] / least:.2f}" if least else "-"
        print(f"  {way:20} {one['us']:11.1f} {one['min_us']:11.1f} {ratio:>8}")


def main(rounds: int) -> Table:
    with undisturbed():
        found = measure(rounds)
        for what, (title, _) in QUESTIONS.items():
            show(title, found[what], C)
        if os.statvfs("/dev/shm").f_bavail * 4096 < 3 * SCAN_MIB * MIB:
            print(f"\nno scan: /dev/shm has less than {3 * SCAN_MIB} MiB left")
        else:
            found["scan"] = measure_scan(rounds)
            show(f"{SCAN_MIB} MiB by numpy", found["scan"], FILE)
    return found
