"""A picture of a trace: how many exits of which kind when, and where the VMM's time went."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from vmm.debug.extras import need
from vmm.debug.tracesummary import named

if TYPE_CHECKING:
    from vmm.debug.exitnames import ExitNames
    from vmm.debug.tracerecord import Array

BINS = 100
OTHERS = "all others"


def plot(records: Array, names: ExitNames, top: int) -> Any:
    """A Figure of ``records`` (tracerecord.FIELDS); it opens no window."""
    figure_module = need("matplotlib.figure", "trace.plot()")
    figure = figure_module.Figure(figsize=(11, 4.5), layout="constrained")
    over_time, by_kind = figure.subplots(1, 2, width_ratios=(3, 2))
    if not len(records):
        over_time.set_title("no exits were traced")
        return figure
    kinds, codes = _largest(records, names, top)
    seconds = records["ts_ns"] / 1e9
    edges = np.linspace(seconds.min(), max(seconds.max(), seconds.min() + 1e-9), BINS + 1)
    counts = [np.histogram(seconds[codes == n], edges)[0] for n in range(len(kinds))]
    width = edges[1] - edges[0]
    over_time.stackplot(edges[:-1] + width / 2, [c / width for c in counts], labels=kinds)
    over_time.set(xlabel="s since start()", ylabel="exits per s", title="exits")
    over_time.legend(fontsize="small")
    totals = [float(records["vmm_ns"][codes == n].sum()) / 1e6 for n in range(len(kinds))]
    by_kind.barh(kinds[::-1], totals[::-1])
    by_kind.set(xlabel="ms", title="time in the VMM")
    return figure


def _largest(records: Array, names: ExitNames, top: int) -> tuple[list[str], Array]:
    """named(), with all but the ``top`` most expensive kinds as one."""
    kinds, codes = named(records, names)
    totals = np.bincount(codes, records["vmm_ns"], len(kinds))
    order = np.argsort(-totals, kind="stable")
    place = np.empty(len(kinds), "i8")
    place[order] = np.minimum(np.arange(len(kinds)), top)
    shown = [kinds[n] for n in order[:top]]
    return shown + ([OTHERS] if len(kinds) > top else []), place[codes]
