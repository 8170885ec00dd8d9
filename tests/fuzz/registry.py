"""Every target by its name. Importing a target's module may cost more than its inputs do."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.fuzz.target import Target

# In the order of what their imports cost.
MODULES = ("rings", "itself", "texts", "readers", "kernels", "sockets", "hosted", "machines")


def each_target() -> Iterator[Target]:
    """All of them, a module imported when its first one is asked for."""
    for module in MODULES:
        yield from import_module(f"tests.fuzz.targets.{module}").TARGETS


def all_targets() -> tuple[Target, ...]:
    """All but the one that is for tests of the harness."""
    return tuple(target for target in each_target() if target.name != "self")


def target_of(name: str) -> Target:
    """The target of that name; SystemExit names those that there are."""
    for target in each_target():
        if target.name == name:
            return target
    raise SystemExit(f"no target {name!r}: {', '.join(target.name for target in all_targets())}")
