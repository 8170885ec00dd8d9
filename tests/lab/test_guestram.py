"""Symbols, frames and cores of real kernels, found in the RAM of their guests."""

from __future__ import annotations

import os

import pytest

from tests.lab.guests.seen_guest import SeenGuest

SCENARIO = "tests.lab.scenarios.guestram"
BACKPORTS = "bookworm-backports"


@pytest.mark.parametrize(
    ("suite", "kaslr"),
    [
        (None, True),
        pytest.param(BACKPORTS, True, marks=pytest.mark.full),
        pytest.param(None, False, marks=pytest.mark.full),
        pytest.param(BACKPORTS, False, marks=pytest.mark.full),
    ],
    ids=["stable", "backports", "stable nokaslr", "backports nokaslr"],
)
def test_a_kernel_is_seen_in_its_ram(lab, suite, kaslr):
    guest = SeenGuest(suite)
    lab.call(
        f"{SCENARIO}:sees_a_kernel", kernel=str(guest.image), initramfs=str(guest.initramfs),
        kaslr=kaslr, whole=os.environ.get("VLLMD_TEST_FULL") == "1",
    )  # fmt: skip


@pytest.mark.full
@pytest.mark.parametrize("suite", [None, BACKPORTS], ids=["stable", "backports"])
def test_symbols_before_the_kernels_first_instruction(lab, suite):
    guest = SeenGuest(suite)
    lab.call(
        f"{SCENARIO}:symbols_before_the_first_instruction",
        kernel=str(guest.image), initramfs=str(guest.initramfs),
    )  # fmt: skip


@pytest.mark.full
def test_drgn_lists_the_processes_of_a_core(lab):
    guest = SeenGuest()
    lab.call(
        f"{SCENARIO}:processes_by_drgn", kernel=str(guest.image),
        initramfs=str(guest.initramfs), vmlinux=str(guest.kernel.debug_vmlinux()),
    )  # fmt: skip
