"""Labs for tests: booted when the first test needs one, booted anew when the emulator lost it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.default_guest import DefaultGuest
from tests.lab.lab import Lab, LabError
from tests.lab.progress import say

LAB_TEST_SECONDS = 1800
ATTEMPTS = 3


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/lab" in str(item.path):
            item.add_marker(pytest.mark.timeout(LAB_TEST_SECONDS))


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

    def run(self, command: list[str], **options: Any) -> Any:
        return self._try("run", command, **options)

    def close(self) -> None:
        lab, self._lab = self._lab, None
        if lab is not None:
            lab.close()


@pytest.fixture(scope="session")
def default_guest() -> DefaultGuest:
    return DefaultGuest()


@pytest.fixture(scope="session")
def lab() -> Iterator[SteadyLab]:
    running = SteadyLab()
    yield running
    running.close()


@pytest.fixture(scope="session")
def debian_lab() -> Iterator[SteadyLab]:
    """A lab whose /dev/vda is a throw-away copy of the Debian image."""
    from tests.lab.debian import DebianGuest

    running = SteadyLab(drives=[Path(DebianGuest().image)])
    yield running
    running.close()
