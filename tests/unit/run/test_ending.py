"""When a guest is not started again."""

from __future__ import annotations

from vmm.run.ending import EARLY_RESETS_MAX, EXIT_CRASH, EXIT_RESETS, ResetPolicy
from vmm.run.outcome import Outcome

RESET = Outcome("reset", "the guest reset the machine")
FAULT = Outcome("reset", "the guest triple-faulted", "rip=0")


def test_a_guest_that_does_nothing_but_reset_ends():
    policy = ResetPolicy()
    for _ in range(EARLY_RESETS_MAX - 1):
        assert policy.refuse(RESET, 0.1) is None
    ending = policy.refuse(RESET, 0.1)
    assert ending.code == EXIT_RESETS == 36
    assert f"{EARLY_RESETS_MAX} times" in ending.reason


def test_one_that_ran_for_a_while_is_counted_anew():
    policy = ResetPolicy()
    for _ in range(5):
        for _ in range(EARLY_RESETS_MAX - 1):
            assert policy.refuse(RESET, 0.1) is None
        assert policy.refuse(RESET, 60.0) is None
        assert policy.delay() == 0


def test_faults_and_resets_by_turns_end_as_well():
    policy = ResetPolicy()
    endings = [policy.refuse((RESET, FAULT)[n % 2], 0.1) for n in range(EARLY_RESETS_MAX)]
    assert endings[:-1] == [None] * (EARLY_RESETS_MAX - 1)
    assert endings[-1].code == EXIT_RESETS


def test_faults_end_sooner():
    policy = ResetPolicy()
    assert [policy.refuse(FAULT, 0.1) for _ in range(2)] == [None, None]
    assert policy.refuse(FAULT, 0.1).code == EXIT_CRASH
