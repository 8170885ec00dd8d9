"""Every target by its name."""

from __future__ import annotations

from tests.fuzz.target import Target
from tests.fuzz.targets import hosted, itself, kernels, machines, readers, rings, sockets, texts

ALL: tuple[Target, ...] = (
    *rings.TARGETS,
    *kernels.TARGETS,
    *texts.TARGETS,
    *readers.TARGETS,
    *sockets.TARGETS,
    *hosted.TARGETS,
    *machines.TARGETS,
)


def target_of(name: str) -> Target:
    """The target of that name; SystemExit names those that there are."""
    for target in (*ALL, itself.SELF):
        if target.name == name:
            return target
    raise SystemExit(f"no target {name!r}: {', '.join(target.name for target in ALL)}")
