"""Reads tables of a definitions file: each value's type is checked, each problem is kept."""

from __future__ import annotations

import re
from typing import Any

SIZE = re.compile(r"([1-9]\d*)([KMGT]?)")
FACTORS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
TYPES = {str: "text", int: "a whole number", float: "a number", bool: "true or false",
         list: "a list", dict: "a table"}  # fmt: skip


class Table:
    """One table of a file; ``problems`` is shared by all, so that they are told at once."""

    def __init__(self, values: Any, where: str, problems: list[str]) -> None:
        self.where = where
        self.problems = problems
        self._left: dict[str, Any] = {}
        if isinstance(values, dict):
            self._left = dict(values)
        else:
            self.wrong(f"must be a table, not {values!r}")

    def wrong(self, text: str) -> None:
        """Keep a problem, with the place that it is about."""
        self.problems.append(f"{self.where}: {text}")

    def has(self, key: str) -> bool:
        """Whether it is there, not yet taken."""
        return key in self._left

    def take(self, key: str, kind: type, default: Any = None) -> Any:
        """A value of that type; ``default`` where it is absent or, which is a problem, wrong."""
        if key not in self._left:
            if default is None:
                self.wrong(f"`{key}` is missing: it must be {TYPES[kind]}")
            return default
        value = self._left.pop(key)
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is kind:
            return value
        self.wrong(f"`{key}` must be {TYPES[kind]}, not {value!r}")
        return default

    def number(self, key: str, default: float, least: float, most: float, kind: type = int) -> Any:
        """A number between these two."""
        value = self.take(key, kind, default)
        if least <= value <= most:
            return value
        self.wrong(f"`{key}` must be between {least} and {most}, not {value}")
        return default

    def size(self, key: str, default: str) -> int:
        """Bytes, of a text such as 128M."""
        text = self.take(key, str, default)
        found = SIZE.fullmatch(text)
        if found is None:
            self.wrong(f"`{key}` must be a size such as 128M or 16G, not {text!r}")
            return 1
        return int(found[1]) * FACTORS[found[2]]

    def texts(self, key: str) -> dict[str, str]:
        """A table of texts; empty where it is absent."""
        found = self.take(key, dict, {}) or {}
        for name, text in found.items():
            if not isinstance(text, str):
                self.wrong(f"`{key}.{name}` must be text, not {text!r}")
        return {name: text for name, text in found.items() if isinstance(text, str)}

    def pattern(self, key: str) -> re.Pattern[bytes]:
        """A regular expression, for the bytes of a serial line; lines are what ^ and $ mean."""
        text = self.take(key, str) or ""
        try:
            return re.compile(text.encode(), re.MULTILINE)
        except re.error as error:
            self.wrong(f"`{key}` is no regular expression: {error}: {text!r}")
            return re.compile(b"")

    def tables(self, key: str) -> list[Table]:
        """A list of tables; empty where it is absent."""
        found = self.take(key, list, []) or []
        return [
            Table(one, f"{self.where}.{key}[{n}]", self.problems) for n, one in enumerate(found)
        ]

    def done(self, known: str) -> None:
        """Whatever was not taken is unknown."""
        for key in self._left:
            self.wrong(f"`{key}` is unknown here; there are: {known}")
