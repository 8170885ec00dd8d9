"""A target that does nothing but what it is told to: for tests of the harness."""

from __future__ import annotations

import ctypes
import os

from tests.fuzz.target import Dice, PythonTarget


class Self(PythonTarget):
    """At its eighth input it comes to the end that its plant names."""

    name = "self"
    quick = 10
    fault = ""
    seen = -1

    def plant(self, fault: str) -> None:
        """As PythonTarget."""
        self.fault = fault

    def one(self, dice: Dice) -> None:
        """As PythonTarget."""
        self.seen += 1
        if self.seen != 7:
            return
        if self.fault == "crash":
            ctypes.string_at(8)
        while self.fault == "stuck":
            pass
        if self.fault in ("overflow", "undefined", "race"):
            from tests.fuzz.drivers.planted import misbehave

            misbehave(self.fault)
        if self.fault == "raise":
            raise ZeroDivisionError
        if self.fault == "memory":
            bytes(1 << 40)

    def end(self) -> None:
        """As PythonTarget."""
        if self.fault == "late":
            import atexit

            atexit.register(os._exit, 3)


TARGETS = (Self(),)
