"""Guests of scripts around a real Linux."""

from __future__ import annotations

import pytest

from tests.lab.guests.seen_guest import SeenGuest

SCENARIO = "tests.lab.scenarios.research"


@pytest.mark.full
@pytest.mark.parametrize("cpus", [1, 2])
def test_the_first_sixty_seconds(lab, cpus):
    guest = SeenGuest()
    lab.call(
        f"{SCENARIO}:first_sixty_seconds", kernel=str(guest.image),
        initramfs=str(guest.initramfs), cpus=cpus,
    )  # fmt: skip


@pytest.mark.full
@pytest.mark.parametrize("part", ["software", "hardware", "watches", "steps"])
def test_points_in_a_kernel(lab, part):
    guest = SeenGuest()
    lab.call(
        f"{SCENARIO}:points_in_a_kernel", kernel=str(guest.image),
        initramfs=str(guest.initramfs), part=part,
    )  # fmt: skip
