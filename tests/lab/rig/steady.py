"""A lab that is booted anew when the emulator lost it or a guest in it; told and counted."""

from __future__ import annotations

from typing import Any

from tests.lab.rig.lab import FlawError, JobResult, Lab, LabError
from tests.lab.rig.progress import say

ATTEMPTS = 3
# One line for each attempt that did not count, for the test's report.
_told: list[str] = []


def take_told() -> list[str]:
    """What was tried again since the last call, one line each."""
    lines = list(_told)
    _told.clear()
    return lines


class SteadyLab:
    """A lab that is made anew after a LabError; what it was asked is then asked once more.

    Of all in one process one runs: a lab that another one's call ends is booted when it is next
    asked. Labs of several modules would otherwise wait for each other's slots for ever.
    """

    _running: SteadyLab | None = None

    def __init__(self, **options: Any) -> None:
        self._options = options
        self._lab: Lab | None = None

    @classmethod
    def close_running(cls) -> None:
        """End the one that runs; it is booted anew when it is asked again."""
        if cls._running is not None:
            cls._running.close()

    def _booted(self) -> Lab:
        if self._lab is None:
            if SteadyLab._running is not None:
                SteadyLab._running.close()
            self._lab = Lab(**self._options)
            SteadyLab._running = self
        return self._lab

    def _try(self, name: str, *arguments: Any, **more: Any) -> Any:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return getattr(self._booted(), name)(*arguments, **more)
            except LabError as error:
                say(f"lab: attempt {attempt} of {ATTEMPTS}: {error}")
                reason = error.reason if isinstance(error, FlawError) else _first_line(error)
                _told.append(f"attempt {attempt} of {ATTEMPTS}: {reason}")
                self.close()
                if attempt == ATTEMPTS:
                    raise
        raise AssertionError("unreachable")

    def call(self, function: str, **arguments: Any) -> str:
        return str(self._try("call", function, **arguments))

    def run(self, command: list[str], **options: Any) -> JobResult:
        return self._try("run", command, **options)

    def shut_down(self, function: str, **arguments: Any) -> str:
        """As Lab.shut_down(); the next call boots another lab."""
        said = str(self._try("shut_down", function, **arguments))
        self.close()
        return said

    def close(self) -> None:
        lab, self._lab = self._lab, None
        if SteadyLab._running is self:
            SteadyLab._running = None
        if lab is not None:
            lab.close()


def _first_line(error: LabError) -> str:
    return f"the lab was lost ({str(error).splitlines()[0]})"
