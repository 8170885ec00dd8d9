"""As a service of systemd, the system's manager and a user's, on a host whose PID 1 it is."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.guests.job_guest import JobGuest
from tests.lab.rig import devices
from tests.lab.rig.devices import random_image
from tests.lab.rig.steady import SteadyLab

SCENARIO = "tests.lab.scenarios.service"
NVME_BYTES = 4 << 20


@pytest.fixture(scope="module")
def nvme(tmp_path_factory) -> Path:
    """The content of the lab's NVMe."""
    return random_image(tmp_path_factory.mktemp("nvme") / "nvme.img", NVME_BYTES)


@pytest.fixture(scope="module")
def host(nvme) -> Iterator[SteadyLab]:
    """One lab for all; the last test shuts it down."""
    running = SteadyLab(memory="4G", systemd=True, extra=devices.nvme(nvme))
    yield running
    running.close()


@pytest.fixture(scope="module")
def guest() -> dict[str, str]:
    job = JobGuest(more=("button", "evdev", "pvpanic-mmio"))
    return {"kernel": str(job.kernel.vmlinux()), "initramfs": str(job.initramfs)}


def both(first: str) -> list[object]:
    """One manager, and the other one in the longer matrix."""
    other = {"system": "user", "user": "system"}[first]
    return [first, pytest.param(other, marks=pytest.mark.full)]


@pytest.mark.parametrize(
    ("kind", "unit"),
    [
        ("system", "vllmd-hypervisor"),
        ("user", "simple"),
        pytest.param("user", "vllmd-hypervisor", marks=pytest.mark.full),
    ],
)
def test_start_status_restart_power_off(host, guest, kind, unit):
    host.call(f"{SCENARIO}:life", kind=kind, unit=unit, **guest)


@pytest.mark.parametrize(
    ("kind", "own", "managers"),
    [("system", 12, 9), pytest.param("user", 2, 30, marks=pytest.mark.full)],
)
def test_a_deaf_guest_is_killed_by_us(host, kind, own, managers):
    host.call(f"{SCENARIO}:deaf_guest_is_killed_by_us", kind=kind, own=own, managers=managers)


@pytest.mark.parametrize("kind", both("system"))
def test_told_to_stop_it_stays_down(host, kind):
    host.call(f"{SCENARIO}:told_to_stop_it_stays_down", kind=kind)


def test_a_vmm_that_hangs_is_killed_by_us(host):
    host.call(f"{SCENARIO}:hung_vmm_is_killed_by_us")


def test_two_instances_are_strangers_to_each_other(host):
    host.call("tests.lab.scenarios.strangers:two_instances")


@pytest.mark.full
@pytest.mark.parametrize("kind", ["user", "system"])
def test_restarted_after_its_death(host, kind):
    host.call(f"{SCENARIO}:restarted_after_its_death", kind=kind)


def test_a_crash_is_a_failure(host):
    host.call(f"{SCENARIO}:crash_is_a_failure", kind="system")


@pytest.mark.full
def test_a_panic_is_a_failure(host, guest):
    host.call(f"{SCENARIO}:panic_is_a_failure", kind="user", **guest)


@pytest.mark.parametrize("kind", both("system"))
def test_mistakes_are_told(host, kind):
    host.call(f"{SCENARIO}:mistakes_are_told", kind=kind)


def test_logs_to_file_and_journal(host):
    host.call(f"{SCENARIO}:logs_to_file_and_journal")


def test_a_device_in_the_sandbox(host, guest, nvme):
    md5 = hashlib.md5(nvme.read_bytes()).hexdigest()
    host.call(f"{SCENARIO}:a_device_in_the_sandbox", md5=md5, **guest)


def test_guests_shut_down_before_the_host(host, guest):
    said = host.shut_down(f"{SCENARIO}:host_shuts_down", **guest)
    end = said[said.rindex("guest: ready") :]
    assert end.count("guest: button heard") == 2, end
    last = end.rindex("guest: button heard")
    assert last < end.index("systemd[1]: Reached target shutdown.target"), end
    assert "timed out" not in end, end
