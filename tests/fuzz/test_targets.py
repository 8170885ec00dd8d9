"""Each target finds nothing, and finds the fault that is put in: both in a second or so."""

from __future__ import annotations

import os
import time

import pytest

from tests.conftest import kvm_problem
from tests.fuzz import supervise
from tests.fuzz.registry import all_targets
from tests.support.speed import patience

ALL = all_targets()
# The same at each run; the other one changes, and is told with what it finds.
SEED = 12
CHANGING = int(time.time()) & 0xFFFFFFFF
# A machine that is busy does fewer inputs; no run is longer for it.
SECONDS = 2.0
FULL_SECONDS = 60.0
# Chance has a part in a race: so often its fault may be missed.
RACES = 5


def gate(target) -> None:
    """As KVM's tests have it."""
    if not target.kvm:
        return
    setting = os.environ.get("VLLMD_TEST_KVM")
    problem = "VLLMD_TEST_KVM=0" if setting == "0" else kvm_problem()
    if problem and setting == "1":
        pytest.fail(problem)
    if problem:
        pytest.skip(problem)


@pytest.mark.parametrize("target", ALL, ids=lambda target: target.name)
def test_nothing_is_found(target):
    gate(target)
    result = supervise.run(
        target.name, SEED, CHANGING, count=target.quick // 2, seconds=patience(SECONDS)
    )
    assert not result.found, f"{result.command}\n{result.found}"
    assert result.inputs > 1


@pytest.mark.full
@pytest.mark.timeout(3 * FULL_SECONDS)
@pytest.mark.parametrize("target", ALL, ids=lambda target: target.name)
def test_nothing_is_found_in_a_minute(target):
    gate(target)
    result = supervise.run(target.name, CHANGING, seconds=FULL_SECONDS)
    assert not result.found, f"{result.command}\n{result.found}"


@pytest.mark.parametrize(
    ("target", "plant"),
    [(target, plant) for target in ALL for plant in target.plants],
    ids=lambda part: getattr(part, "name", part),
)
def test_what_is_planted_is_found(target, plant):
    gate(target)
    for attempt in range(RACES if target.racing else 1):
        result = supervise.run(
            target.name, SEED + attempt, count=50 * target.quick, seconds=patience(10), plant=plant
        )
        if result.found:
            return
    raise AssertionError(f"{target.name} has not found {plant} in {result.inputs} inputs")
