"""The process's log, kept in memory for a test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from devices import failure
from vmm.log.hub import INFO, hub
from vmm.log.ratelimit import RateLimit


class Lines:
    """A sink that keeps (level, message)."""

    def __init__(self) -> None:
        self.records: list[tuple[int, str]] = []

    def write(self, level: int, name: str, message: str, fields: object = ()) -> None:
        self.records.append((level, message))

    def reopen(self) -> None: ...

    def close(self) -> None: ...

    def having(self, text: str) -> list[str]:
        return [message for _, message in self.records if text in message]


@contextmanager
def log_lines(level: int = INFO) -> Iterator[Lines]:
    """What the log gets meanwhile, with fresh budgets and nothing told yet."""
    before = hub.sinks, hub.level, hub._limit
    lines = Lines()
    failure._told.clear()
    hub.sinks, hub.level, hub._limit = [lines], level, RateLimit()
    try:
        yield lines
    finally:
        hub.sinks, hub.level, hub._limit = before
