"""The examples on a real Linux: the most telling ones in one boot, the others by themselves."""

from __future__ import annotations

import pytest

SCENARIO = "tests.lab.scenarios.examples"


def test_processes_system_calls_and_exits_of_one_boot(lab, default_guest):
    guest = default_guest
    print(
        lab.call(
            f"{SCENARIO}:one_boot", timeout=900,
            kernel=str(guest.kernel.image), initramfs=str(guest.initramfs),
            system=str(guest.system), config=str(guest.config),
        )
    )  # fmt: skip


# What needs numpy is not here: the lab's processor has less than numpy was built for.
@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("count_system_calls", [], ["execve", "openat"]),
        ("list_processes", [], ["[kthreadd]", "[swapper/0]"]),
        ("who_writes_this_page", ["jiffies_64"], ["watch: cpu 0"]),
        ("fuzz_a_parser", ["in4_pton", "300"], ["blocks of in4_pton, 300 calls", "new code by"]),
        ("disk_errors", ["3"], ["I/O error", "errors for the sectors ["]),
        ("bisect_a_hang", [], ["it does not hang"]),
        ("last_good_snapshot", [], ["ended: cpu 0"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_by_itself(lab, default_guest, name, arguments, words):
    guest = default_guest
    files = [guest.kernel.image, guest.initramfs, guest.system, guest.config]
    print(
        lab.call(
            f"{SCENARIO}:by_itself", timeout=1000, script=name, words=words,
            arguments=[*arguments, *map(str, files)],
        )
    )  # fmt: skip
