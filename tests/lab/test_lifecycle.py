"""Starting, stopping, rebooting and killing, with small guests on real kernels."""

from __future__ import annotations

import pytest

from tests.lab.guests.job_guest import JobGuest

SCENARIO = "tests.lab.scenarios.lifecycle"
BACKPORTS = "bookworm-backports"


@pytest.fixture(scope="module")
def job() -> JobGuest:
    return JobGuest()


def call(lab, job: JobGuest, name: str, **more: object) -> None:
    lab.call(f"{SCENARIO}:{name}", kernel=str(job.image), initramfs=str(job.initramfs), **more)


# What is marked "full" tests/kvm/command has with guests of a few instructions, or test_service.py.


@pytest.mark.parametrize(
    ("form", "suite"),
    [
        pytest.param("bzimage", None, id="bzimage-stable"),
        pytest.param("pvh", BACKPORTS, id="pvh-backports"),
        pytest.param("bzimage", BACKPORTS, id="bzimage-backports", marks=pytest.mark.full),
        pytest.param("pvh", None, id="pvh-stable", marks=pytest.mark.full),
    ],
)
def test_kernels_run(lab, suite, form):
    guest = JobGuest(suite)
    kernel = guest.image if form == "bzimage" else guest.kernel.vmlinux()
    lab.call(
        f"{SCENARIO}:runs_a_kernel", kernel=str(kernel), initramfs=str(guest.initramfs),
        release=guest.kernel.release,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("how", "times"),
    [
        ("acpi", 1),
        *[pytest.param(how, 3, marks=pytest.mark.full) for how in ("acpi", "kbd", "triple")],
    ],
)
def test_reboots(lab, job, how, times):
    call(lab, job, "reboots", how=how, times=times)


@pytest.mark.full
def test_panic_reboots(lab, job):
    call(lab, job, "panic_reboots")


@pytest.mark.full
def test_deaf_guest_is_killed_at_the_timeout(lab, job):
    call(lab, job, "deaf_guest_is_killed")


def test_stop_during_boot_and_of_nothing(lab, job):
    call(lab, job, "stop_during_boot_and_of_nothing")


@pytest.mark.full
def test_second_stop_kills_at_once(lab, job):
    call(lab, job, "second_stop_kills_at_once")


@pytest.mark.full
def test_kill_and_start_again(lab, job):
    call(lab, job, "killed_and_started_again")


@pytest.mark.full
def test_one_process_of_one_name(lab, job):
    call(lab, job, "one_process_of_one_name")


@pytest.mark.full
def test_log_rotation_and_full_disk(lab, job):
    call(lab, job, "log_survives_rotation_and_a_full_disk")
