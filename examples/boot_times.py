"""What makes a boot slow? One guest under four configurations, with a picture.

    python examples/boot_times.py [KERNEL [INITRAMFS]]

Each configuration boots three times; the median counts. Leaves boot_times.png where matplotlib is
installed.
"""

from __future__ import annotations

import statistics
import sys
import time
from typing import Any

from guests import settings

import vmm
from vmm.debug.extras import need

SECONDS = 300
TIMES = 3
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "1 CPU, 256 MiB": {},
    "2 CPUs": {"cpu_count": 2},
    "1 GiB": {"memory": "1G"},
    "quiet": {"cmdline": "console=ttyS0 panic=-1 quiet"},
}


def boot(keywords: dict[str, Any]) -> tuple[float, float]:
    """(seconds to build the machine, seconds from there to the guest's end)."""
    started = time.perf_counter()
    with vmm.Guest(**keywords) as guest:
        built = time.perf_counter()
        stop = guest.run(seconds=SECONDS)
        if stop.kind != "ended":
            raise SystemExit(f"{keywords}: {stop}")
        return built - started, time.perf_counter() - built


def draw(rows: dict[str, tuple[float, float]], path: str) -> None:
    """Bars, one a configuration."""
    figure = need("matplotlib.figure", "the picture").Figure(figsize=(8, 3), layout="constrained")
    axes = figure.subplots()
    built = [row[0] for row in rows.values()]
    axes.barh(list(rows), built, label="the machine")
    axes.barh(list(rows), [row[1] for row in rows.values()], left=built, label="the guest")
    axes.invert_yaxis()
    axes.set(xlabel="s")
    axes.legend()
    figure.savefig(path)


def main(*files: str, times: int = TIMES) -> int:
    """Boot each, print and draw."""
    rows = {}
    for name, more in CONFIGURATIONS.items():
        runs = [boot(settings(files, **more)) for _ in range(times)]
        built, ran = [statistics.median(column) for column in zip(*runs, strict=True)]
        rows[name] = (built, ran)
        print(f"{name:16} machine {built * 1000:8.2f} ms, guest {ran * 1000:10.1f} ms")
    try:
        draw(rows, "boot_times.png")
    except vmm.HostError as error:
        print(f"no picture: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
