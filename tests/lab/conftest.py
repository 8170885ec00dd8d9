"""Labs for tests: booted when the first test needs one, booted anew when the emulator lost it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import RETRIED
from tests.lab.guests.debian import DebianGuest
from tests.lab.guests.default_guest import DefaultGuest
from tests.lab.guests.job_guest import JobGuest
from tests.lab.rig import devices
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


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(nextitem: pytest.Item | None) -> None:
    """A worker's last lab ends before its other tests: it has a slot, and a processor's time."""
    if nextitem is not None and "tests/lab" not in str(nextitem.path):
        SteadyLab.close_running()


@pytest.fixture(scope="session")
def default_guest() -> DefaultGuest:
    return DefaultGuest()


@pytest.fixture(scope="session")
def job() -> dict[str, str]:
    """Kernel and initramfs of the small guest that does what its config disk says."""
    guest = JobGuest()
    return {"kernel": str(guest.image), "initramfs": str(guest.initramfs)}


@pytest.fixture(scope="session")
def nvme(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The content of a lab's NVMe, random but always the same."""
    return devices.random_image(tmp_path_factory.mktemp("nvme") / "nvme.img", devices.NVME_BYTES)


@pytest.fixture(scope="session")
def writes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The host's file behind a second NVMe, which is written to for good."""
    path = tmp_path_factory.mktemp("nvme") / "writes.img"
    with open(path, "wb") as file:
        file.truncate(devices.WRITES_BYTES)
    return path


@pytest.fixture(scope="session")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that the lab's network offers by TFTP."""
    path = tmp_path_factory.mktemp("tftp") / devices.FETCHED_NAME
    return devices.random_image(path, devices.FETCHED_BYTES, seed=2)


@pytest.fixture(scope="session")
def lab(nvme: Path, writes: Path, fetched: Path) -> Iterator[SteadyLab]:
    """The one that nearly all modules share: throw-away copies of the Debian disks, all devices.

    A boot, and the first job of a lab, cost as much as many a test.
    """
    debian = DebianGuest()
    running = SteadyLab(
        drives=[debian.image, debian.disk, debian.grub_disk()],
        extra=devices.everything(nvme, writes, fetched),
    )
    yield running
    running.close()
