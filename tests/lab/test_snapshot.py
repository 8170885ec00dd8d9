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


@pytest.mark.parametrize("cpus", [1, pytest.param(2, marks=pytest.mark.full)])
def test_linux_again_and_again(lab, job, cpus):
    print(lab.call(f"{SCENARIO}:again_and_again", timeout=880, cpus=cpus, **job))
