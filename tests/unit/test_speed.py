"""The patience of the tests: measured once, told to children, never less than what is asked for."""

from __future__ import annotations

import hypothesis
import pytest

from tests.support import speed


@pytest.fixture
def clock(monkeypatch):
    """A machine on which one round takes as many seconds as are put here."""
    rounds: list[float] = []
    now = [0.0]

    def work() -> int:
        now[0] += rounds.pop(0)
        return 0

    monkeypatch.delenv(speed.VARIABLE, raising=False)
    monkeypatch.setattr(speed, "work", work)
    monkeypatch.setattr(speed.time, "monotonic", lambda: now[0])
    return rounds


@pytest.mark.parametrize(("times", "factor"), [(1.0, 1.0), (0.3, 1.0), (2.0, 2.0), (1000.0, 8.0)])
def test_patience_follows_the_machine(clock, times, factor):
    clock += [speed.REFERENCE_SECONDS * times] * speed.ROUNDS
    assert speed.patience(30) == pytest.approx(30 * factor)


def test_measured_once_and_told_to_children(clock):
    clock += [speed.REFERENCE_SECONDS * 2] * speed.ROUNDS
    assert (speed.slowness(), speed.slowness()) == (2.0, 2.0)
    assert speed.os.environ[speed.VARIABLE] == "2.0"


def test_one_round_that_was_held_up_does_not_count(clock):
    clock += [speed.REFERENCE_SECONDS] * (speed.ROUNDS - 2) + [9.0, 9.0]
    assert speed.slowness() == 1.0


def test_every_test_has_a_scaled_time_out(request):
    marker = request.node.get_closest_marker("timeout")
    usual = float(request.config.getini("timeout"))
    assert marker.args[0] == pytest.approx(speed.patience(usual))


def test_hypothesis_has_no_clock_of_its_own():
    assert hypothesis.settings().deadline is None
    assert hypothesis.HealthCheck.too_slow in hypothesis.settings().suppress_health_check
