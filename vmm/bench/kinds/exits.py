"""Exits of a guest by their kinds: KVM's own counts, or those that the VMM tells."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from vmm.bench import guests, procfs
from vmm.bench.kinds.kind import Kind, Metric, Sample, Setup
from vmm.bench.tables import Table
from vmm.bench.trial import Trial, TrialError

REMEDY = "as root: mount -t debugfs none /sys/kernel/debug; or give the contender `exits`"


@dataclass(frozen=True)
class Until:
    """Reads of the tiny guest; or, for a guest of the definitions', the line to wait for."""

    reads: int
    pattern: re.Pattern[bytes] | None


class Exits(Kind):
    """From the start of a guest to its last byte, or to a line of its serial port."""

    title = "exits by kind"

    def read(self, table: Table) -> Until:
        """`until`: a pattern, with `kernel`; else `reads` of the tiny guest."""
        pattern = table.pattern("until") if table.has("until") else None
        return Until(int(table.number("reads", 1000, 0, 1 << 31)), pattern)

    def metric(self, name: str, options: Any) -> Metric:
        """A count for each kind, and `all`."""
        return Metric("exits")

    def run(self, setup: Setup) -> Sample:
        """Counts when the guest has come so far."""
        tiny = guests.write_byte_guest(setup.folder / "exits.elf", setup.options.reads)
        pattern = setup.options.pattern
        with setup.start(None if pattern else tiny, {}) as trial:
            if pattern:
                trial.until_line(pattern)
            else:
                trial.until(guests.LAST)
            found = procfs.kvm_exits(trial.pid) or told_exits(trial)
        # KVM's own total, where it has one, is no sum of kinds.
        total = found.pop("exits", None)
        shown = {name: float(count) for name, count in found.items() if count}
        return Sample(shown | {"all": float(sum(found.values()) if total is None else total)})


def told_exits(trial: Trial) -> dict[str, int]:
    """The table `exits` of the JSON that the contender's own command prints."""
    if not trial.contender.exits:
        raise TrialError(f"{procfs.KVM_STATISTICS} is not readable ({REMEDY})")
    text = trial.ask(trial.contender.exits, "exits")
    try:
        whole: Any = json.loads(text)
        return {str(name): int(count) for name, count in whole["exits"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TrialError(f"`exits` printed no JSON with a table `exits`: {text[:200]!r}") from error
