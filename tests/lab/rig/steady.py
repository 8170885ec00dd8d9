"""A lab that is booted anew when the emulator lost it or a guest in it."""

from __future__ import annotations

from typing import Any

from tests.lab.rig.lab import JobResult, Lab, LabError
from tests.lab.rig.progress import say

ATTEMPTS = 3


class SteadyLab:
    """A lab that is made anew after a LabError; what it was asked is then asked once more."""

    def __init__(self, **options: Any) -> None:
        self._options = options
        self._lab: Lab | None = None

    def _try(self, name: str, *arguments: Any, **more: Any) -> Any:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                if self._lab is None:
                    self._lab = Lab(**self._options)
                return getattr(self._lab, name)(*arguments, **more)
            except LabError as error:
                say(f"lab: attempt {attempt} of {ATTEMPTS}: {error}")
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
        if lab is not None:
            lab.close()
