"""States with something wrong in them: each value in turn of another type, size or range."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

BAD: tuple[Any, ...] = (
    None, True, -1, 1 << 65, 1 << 9000, 1.5, "", "x" * 100_000, b"", b"\xff" * 100_000,
    [], [None] * 9, {}, {"version": 1}, (), object(),
)  # fmt: skip


def places(state: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path to each value, from the outside in."""
    if path:
        yield path
    if isinstance(state, dict):
        for key in state:
            yield from places(state[key], (*path, key))
    elif isinstance(state, list):
        for index in range(min(len(state), 2)):
            yield from places(state[index], (*path, index))


def hostile(state: Any) -> Iterator[tuple[str, Any]]:
    """(what is wrong, the state) for every value; it may happen that one of them is good."""
    for path in places(state):
        for bad in BAD:
            changed = copy.deepcopy(state)
            inner = changed
            for key in path[:-1]:
                inner = inner[key]
            if type(inner[path[-1]]) is type(bad) and inner[path[-1]] == bad:
                continue
            inner[path[-1]] = bad
            shown = hex(bad) if isinstance(bad, int) else str(bad)
            yield f"{path} = {shown[:20]}", changed
        changed = copy.deepcopy(state)
        inner = changed
        for key in path[:-1]:
            inner = inner[key]
        if isinstance(inner, dict):
            del inner[path[-1]]
            inner["more"] = 1
            yield f"{path} is missing", changed
