"""Snapshots of Linux: taken after its boot, restored, forked, saved, and gone on with elsewhere."""

from __future__ import annotations

import pytest

from tests.lab.guests.job_guest import JobGuest

SCENARIO = "tests.lab.scenarios.snapshot"


@pytest.fixture(scope="module")
def job() -> dict[str, str]:
    """A kernel with a driver for the VM generation id."""
    guest = JobGuest("bookworm-backports")
    return {"kernel": str(guest.image), "initramfs": str(guest.initramfs)}


# Shared memory is a file of huge pages there, which forks have small ones over.
@pytest.mark.parametrize(
    ("cpus", "memory"),
    [
        (1, "size=256M,shared=on"),
        pytest.param(1, "size=256M", marks=pytest.mark.full),
        pytest.param(2, "size=256M", marks=pytest.mark.full),
    ],
)
def test_linux_again_and_again(lab, job, cpus, memory):
    print(lab.call(f"{SCENARIO}:again_and_again", timeout=880, cpus=cpus, memory=memory, **job))
