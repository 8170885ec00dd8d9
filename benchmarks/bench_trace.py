"""Exits per second with the trace off, on, and on with rip: one guest, one run, interleaved."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

from tests.support.guest_asm import Program
from tests.support.tiny_machine import TinyMachine
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


def exits_per_second(tiny: TinyMachine) -> float:
    loop = tiny.machine.vcpus[0].loop
    time.sleep(SETTLE_S)
    before, began = loop.counters()["io"], time.perf_counter()
    time.sleep(SLICE_S)
    after, ended = loop.counters()["io"], time.perf_counter()
    return (after - before) / (ended - began)


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
    with tempfile.TemporaryDirectory() as folder, TinyMachine(Path(folder), guest()) as tiny:
        tiny.machine.start()
        for number in range(rounds + 1):
            # Each way comes first as often as the others.
            for way in WAYS[number % len(WAYS) :] + WAYS[: number % len(WAYS)]:
                rate = one_slice(tiny, way)
                if number:
                    rates[way].append(rate)
        tiny.machine.stop_vcpus()
    return {way: _row(rates[way], rates["off"]) for way in WAYS}


def _row(rates: list[float], off: list[float]) -> Row:
    ratios = [rate / base for rate, base in zip(rates, off, strict=True)]
    return {
        "exits_per_s": statistics.median(rates),
        "to_off": statistics.median(ratios),
        "cost_percent": 100 * (1 - statistics.median(ratios)),
    }


def main(rounds: int) -> dict[str, Row]:
    found = measure(rounds)
    print(f"\nexits per second by trace (medians of {rounds} rounds, interleaved)")
    print(f"{'trace':20}{'exits/s':>14}{'to off':>10}{'cost':>10}")
    for way, row in found.items():
        print(
            f"{way:20}{row['exits_per_s']:14,.0f}{row['to_off']:10.4f}{row['cost_percent']:9.2f}%"
        )
    return found
