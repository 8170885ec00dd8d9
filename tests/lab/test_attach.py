"""A real kernel in a running instance, by `vmm.attach()` and `dump`."""

from __future__ import annotations

import pytest

from tests.lab.guests.seen_guest import SeenGuest

SCENARIO = "tests.lab.scenarios.attach"


@pytest.mark.parametrize(
    "memory",
    [
        "size=256M,shared=on",
        pytest.param("size=256M", marks=pytest.mark.full),
        pytest.param("size=256M,hugepages=on", marks=pytest.mark.full),
    ],
    ids=["shared", "private", "huge pages"],
)
def test_a_kernel_is_seen_by_another_process(lab, memory):
    guest = SeenGuest()
    lab.call(
        f"{SCENARIO}:sees_a_kernel", kernel=str(guest.image), initramfs=str(guest.initramfs),
        memory=memory,
    )  # fmt: skip


@pytest.mark.full
def test_drgn_sees_the_same_live_and_in_a_dump(lab):
    guest = SeenGuest()
    lab.call(
        f"{SCENARIO}:processes_by_drgn", kernel=str(guest.image),
        initramfs=str(guest.initramfs), vmlinux=str(guest.kernel.debug_vmlinux()),
    )  # fmt: skip
