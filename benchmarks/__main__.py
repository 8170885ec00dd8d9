"""`python -m benchmarks`: prints tables, and writes the figures with the host's facts as JSON."""

from __future__ import annotations

import argparse
import json
import sys

from benchmarks.hostinfo import host_facts
from benchmarks.peers import find_peers


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "what",
        nargs="*",
        default=["start", "trace", "snapshot", "debug", "disk", "lab"],
        help="start, trace, snapshot, debug, disk, lab",
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--lab-rounds", type=int, default=3)
    parser.add_argument(
        "--lab-only",
        action="append",
        default=[],
        choices=["memory", "exits", "linux", "debian", "fio", "hypervisor-fw", "CLOUDHV.fd"],
        help="one question of the lab's; may be given several times",
    )
    parser.add_argument("--disk-place", help="a folder on the file system that disk asks")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--output", help="write JSON here")
    options = parser.parse_args()
    facts = host_facts()
    print(", ".join(f"{name}: {value}" for name, value in facts.items()))
    peers = find_peers(options.peer)
    results: dict[str, object] = {"host": facts}
    try:
        measure(options, peers, results)
    finally:
        # What was found before something failed is kept.
        if options.output:
            with open(options.output, "w") as file:
                json.dump(results, file, indent=1)
    return 0


def measure(options: argparse.Namespace, peers: dict[str, str], results: dict[str, object]) -> None:
    if "start" in options.what:
        from benchmarks import bench_start

        results["start"] = bench_start.main(peers, options.rounds)
    if "snapshot" in options.what:
        from benchmarks import bench_snapshot

        results["snapshot"] = bench_snapshot.main(options.rounds)
    if "trace" in options.what:
        from benchmarks import bench_trace

        results["trace"] = bench_trace.main(options.rounds)
    if "debug" in options.what:
        from benchmarks import bench_debug

        results["debug"] = bench_debug.main(options.rounds)
    if "disk" in options.what:
        from benchmarks import bench_disk

        results["disk"] = bench_disk.main(options.rounds, options.disk_place)
    if "lab" in options.what:
        from benchmarks import bench_lab

        results["lab"] = bench_lab.main(peers, options.lab_rounds, options.lab_only)


if __name__ == "__main__":
    sys.exit(main())
