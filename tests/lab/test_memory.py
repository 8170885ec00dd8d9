"""Shared guest RAM in huge pages, on a kernel that has small ones for memfds."""

from __future__ import annotations

import pytest

from tests.lab.guests.job_guest import JobGuest

SCENARIO = "tests.lab.scenarios.memory"


@pytest.fixture(scope="module")
def job() -> dict[str, str]:
    guest = JobGuest()
    return {"kernel": str(guest.image), "initramfs": str(guest.initramfs)}


def test_a_guest_has_huge_pages(lab, job):
    print(lab.call(f"{SCENARIO}:a_guest_has_huge_pages", **job))


def test_a_snapshot_copies_only_what_was_written(lab):
    lab.call(f"{SCENARIO}:a_snapshot_copies_only_what_was_written")


def test_a_refusal_is_told_and_cured(lab, job):
    lab.call(f"{SCENARIO}:a_refusal_is_told_and_cured", **job)
