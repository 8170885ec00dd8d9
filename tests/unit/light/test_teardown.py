"""Every step of a teardown is tried."""

from __future__ import annotations

import pytest

from vmm.light.teardown import close_all, try_all


def test_what_fails_stops_nothing():
    done = []

    def fail() -> None:
        raise OSError(5, "gone")

    steps = [lambda: done.append(1), fail, lambda: done.append(2), fail]
    assert len(try_all(steps)) == 2
    assert done == [1, 2]
    with pytest.raises(OSError, match="gone"):
        close_all(steps)
    assert done == [1, 2, 1, 2]
