"""Labs for tests: booted when the first test needs one, booted anew when the emulator lost it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.default_guest import DefaultGuest
from tests.lab.steady import SteadyLab

LAB_TEST_SECONDS = 1800


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/lab" in str(item.path):
            item.add_marker(pytest.mark.timeout(LAB_TEST_SECONDS))


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
