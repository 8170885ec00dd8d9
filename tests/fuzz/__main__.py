"""`python -m tests.fuzz`: all targets or some, for a time or for so many inputs, and a table."""

from __future__ import annotations

import argparse
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from tests.fuzz import supervise
from tests.fuzz.build import SETS, build
from tests.fuzz.registry import all_targets, target_of


def words(arguments: list[str]) -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--list", action="store_true", help="the targets and their plants")
    parser.add_argument("--target", default="", help="names with commas between; all of them")
    parser.add_argument("--seconds", type=float, default=1e9, help="for each target")
    parser.add_argument("--inputs", type=int, default=supervise.FOREVER, help="for each target")
    parser.add_argument("--seed", type=int, help="one of the clock's is taken and shown")
    parser.add_argument("--at", type=int, default=0, help="the number of the first input")
    parser.add_argument("--set", choices=sorted(SETS), default="plain", help="how it is built")
    parser.add_argument("--plant", default="", help="a fault to put in: it has to be found")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="targets at once")
    return parser.parse_args(arguments)


def main() -> int:
    """0: nothing was found."""
    asked = words(sys.argv[1:])
    if asked.list:
        for target in all_targets():
            print(f"{target.name:20} {'kvm ' if target.kvm else ''}{' '.join(target.plants)}")
        return 0
    if asked.seconds > 1e8 and asked.inputs == supervise.FOREVER:
        print("say --seconds or --inputs", file=sys.stderr)
        return 2
    build(asked.set)
    seed = asked.seed if asked.seed is not None else int(time.time()) & 0xFFFFFFFF
    names = [name for name in asked.target.split(",") if name] or [
        t.name for t in usable(asked.set)
    ]
    print(f"seed {seed}, {asked.set} modules")
    print(f"{'target':20} {'inputs':>12} {'per second':>11}  found", flush=True)
    with ThreadPoolExecutor(asked.jobs) as pool:
        found = list(pool.map(lambda name: one(name, seed, asked), names))
    print(f"{sum(inputs for inputs, _ in found)} inputs in all")
    return int(any(bad for _, bad in found))


def usable(kind: str) -> list:
    """Those for which this machine has what they need, and which this set says more about."""
    kvm = os.access("/dev/kvm", os.R_OK | os.W_OK)
    return [t for t in all_targets() if (kvm or not t.kvm) and (kind != "tsan" or t.threads)]


def one(name: str, seed: int, asked: argparse.Namespace) -> tuple[int, bool]:
    """Run one target and say how it went: (inputs, whether something was found)."""
    result = supervise.run(
        name, seed, first=asked.at, count=asked.inputs, seconds=asked.seconds, kind=asked.set,
        plant=asked.plant,
    )  # fmt: skip
    told = "nothing"
    if result.found:
        told = str(supervise.keep(result, target_of(name).racing))
    print(f"{name:20} {result.inputs:12} {result.rate:11.0f}  {told}", flush=True)
    return result.inputs, bool(result.found)


if __name__ == "__main__":
    sys.exit(main())
