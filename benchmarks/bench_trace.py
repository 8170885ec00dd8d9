"""Exits per second with the trace off, on, and on with rip: one guest, one run, interleaved."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

from tests.support.guest_asm import Program
from tests.support.tiny_machine import TinyMachine
from vmm._native.kvm.runloop import VcpuLoop
from vmm.debug.trace import Trace

LSR = 0x3FD
SLICE_S = 0.1
SETTLE_S = 0.01
WAYS = ("off", "on", "on, rip")
# Exits per second; what is compared with off; the share that tracing takes.
Row = dict[str, float]


def guest() -> bytes:
    """Reads the LSR for ever: native, and as short as an exit of ours is."""
    return bytes(Program().raw(f"66ba{LSR.to_bytes(2, 'little').hex()} ec ebfd").code)


def look(loop: VcpuLoop) -> tuple[int, float]:
    """(exits, s that the vCPU's thread had a processor): others' work does not count."""
    # As pthread_getcpuclockid(3) makes it from a thread's id.
    return loop.counters().get("io", 0), time.clock_gettime(~loop.thread_id << 3 | 6)


def exits_per_second(tiny: TinyMachine) -> float:
    loop = tiny.machine.vcpus[0].loop
    time.sleep(SETTLE_S)
    before, began = look(loop)
    time.sleep(SLICE_S)
    after, ended = look(loop)
    return (after - before) / (ended - began) if ended > began else 0.0


def one_slice(tiny: TinyMachine, way: str) -> float:
    if way == "off":
        return exits_per_second(tiny)
    trace = Trace(tiny.machine)
    with trace.start(rip="rip" in way):
        rate = exits_per_second(tiny)
    if trace.dropped:
        print(f"  trace {way}: {trace.dropped} of {len(trace)} records were dropped")
    return rate


def measure(rounds: int) -> dict[str, Row]:
    """Medians of interleaved slices; the cost is the median of each round's own ratio."""
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    starved = 0
    with tempfile.TemporaryDirectory() as folder, TinyMachine(Path(folder), guest()) as tiny:
        tiny.machine.start()
        while not tiny.machine.exits():
            time.sleep(SETTLE_S)
        for number in range(rounds + 1):
            # Each way comes first as often as the others.
            order = WAYS[number % len(WAYS) :] + WAYS[: number % len(WAYS)]
            found = {way: one_slice(tiny, way) for way in order}
            if not all(found.values()):
                starved += 1
            elif number:
                for way, rate in found.items():
                    rates[way].append(rate)
        tiny.machine.stop_vcpus()
    if starved:
        print(f"  {starved} rounds do not count: others had the processors for a whole slice")
    return {way: _row(rates[way], rates["off"]) for way in WAYS if rates["off"]}


def _row(rates: list[float], off: list[float]) -> Row:
    ratios = [rate / base for rate, base in zip(rates, off, strict=True)]
    return {
        "exits_per_s": statistics.median(rates),
        "to_off": statistics.median(ratios),
        "cost_percent": 100 * (1 - statistics.median(ratios)),
    }


def main(rounds: int) -> dict[str, Row]:
    found = measure(rounds)
    print(f"\nexits per second of the vCPU's thread (medians of {rounds} interleaved rounds)")
    print(f"{'trace':20}{'exits/cpu s':>14}{'to off':>10}{'cost':>10}")
    for way, row in found.items():
        print(
            f"{way:20}{row['exits_per_s']:14,.0f}{row['to_off']:10.4f}{row['cost_percent']:9.2f}%"
        )
    return found
