"""One lab for all tests that need no special one; it is booted when the first of them runs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.default_guest import DefaultGuest
from tests.lab.lab import Lab

LAB_TEST_SECONDS = 900


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/lab" in str(item.path):
            item.add_marker(pytest.mark.timeout(LAB_TEST_SECONDS))


@pytest.fixture(scope="session")
def default_guest() -> DefaultGuest:
    return DefaultGuest()


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    with Lab() as running:
        yield running
