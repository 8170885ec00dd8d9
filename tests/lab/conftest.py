"""Labs for tests: booted when the first test needs one, booted anew when the emulator lost it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import RETRIED
from tests.lab.guests.default_guest import DefaultGuest
from tests.lab.guests.job_guest import JobGuest
from tests.lab.rig.steady import SteadyLab, take_told

LAB_TEST_SECONDS = 1800


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/lab" in str(item.path):
            item.add_marker(pytest.mark.timeout(LAB_TEST_SECONDS))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item) -> None:
    """What was tried again goes with the test's report, also from a worker process."""
    item.user_properties += [(RETRIED, line) for line in take_told()]


@pytest.fixture(scope="session")
def default_guest() -> DefaultGuest:
    return DefaultGuest()


@pytest.fixture(scope="session")
def job() -> dict[str, str]:
    """Kernel and initramfs of the small guest that does what its config disk says."""
    guest = JobGuest()
    return {"kernel": str(guest.image), "initramfs": str(guest.initramfs)}


@pytest.fixture(scope="session")
def lab() -> Iterator[SteadyLab]:
    running = SteadyLab()
    yield running
    running.close()


@pytest.fixture(scope="session")
def debian_lab() -> Iterator[SteadyLab]:
    """A lab whose disks are throw-away copies of the Debian images."""
    from tests.lab.guests.debian import DebianGuest

    debian = DebianGuest()
    running = SteadyLab(drives=[debian.image, debian.disk, debian.grub_disk()])
    yield running
    running.close()
