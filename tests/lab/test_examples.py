"""The examples on a real Linux: the most telling ones in one boot, the others by themselves."""

from __future__ import annotations

import sys

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


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("trace_a_boot", [], ["COM1 THR", "queue notify", "the guest powered itself off"]),
        ("count_system_calls", [], ["execve", "openat"]),
        ("list_processes", [], ["[kthreadd]", "[swapper/0]"]),
        ("who_writes_this_page", ["jiffies_64"], ["watch: cpu 0"]),
        ("fuzz_a_parser", ["in4_pton", "300"], ["blocks of in4_pton, 300 calls", "new code by"]),
        ("boot_times", [], ["2 CPUs", "quiet"]),
        ("diff_two_snapshots", ["3"], ["pages differ"]),
        ("bisect_a_hang", [], ["it does not hang"]),
        ("last_good_snapshot", [], ["ended: cpu 0"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_by_itself(lab, default_guest, name, arguments, words):
    print(
        lab.call(f"{SCENARIO}:by_itself", timeout=1000, name=name, arguments=arguments, words=words)
    )


@pytest.mark.full
def test_tiny_guests_on_the_lab_s_kvm(lab):
    result = lab.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
         "tests/kvm/debug/test_examples.py"],
        env={"VLLMD_TEST_KVM": "1"},
    )  # fmt: skip
    assert result.status == 0, result.output
