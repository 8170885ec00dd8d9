"""All kinds by their names."""

from __future__ import annotations

from vmm.bench.kinds.exits import Exits
from vmm.bench.kinds.firstbyte import ExitCost, FirstByte, Prefault
from vmm.bench.kinds.jitter import Jitter
from vmm.bench.kinds.kind import Kind
from vmm.bench.kinds.lines import Boot, Figures
from vmm.bench.kinds.memory import Density, Memory

KINDS: dict[str, Kind] = {
    "first-byte": FirstByte(),
    "exit-cost": ExitCost(),
    "boot": Boot(),
    "memory": Memory(),
    "density": Density(),
    "jitter": Jitter(),
    "exits": Exits(),
    "prefault": Prefault(),
    "figures": Figures(),
}
