"""A process that is suspended while it is asked: that is told, not that it does not answer."""

from __future__ import annotations

from typing import cast

import pytest

from vmm.command.status import EXIT_UNKNOWN, status
from vmm.command.stop import Stopping
from vmm.run.folder import Folder
from vmm.run.process import Process

HELD = "is stopped by a signal: `kill -CONT 77` lets it go on"


class Suspended:
    """A process whose suspension takes effect when it is asked by its socket."""

    pid = 77

    def __init__(self) -> None:
        self.asked = False
        self.signals: list[int] = []

    def held(self) -> str:
        return HELD if self.asked else ""

    def send(self, number: int) -> None:
        self.signals.append(number)

    def close(self) -> None:
        pass


class Place:
    """Its folder."""

    name, running, unseen = "vm", True, ""

    def __init__(self) -> None:
        self.runs = Suspended()

    def process(self) -> Suspended:
        return self.runs

    def owner(self) -> None:
        return None

    def state(self) -> dict[str, object]:
        return {"state": "running", "stop_timeout_s": 3}

    def ask(self, request: dict[str, object], seconds: float) -> dict[str, object]:
        self.runs.asked = True
        raise TimeoutError("timed out")


def test_status_tells_it():
    code, facts = status(cast(Folder, Place()))
    assert code == EXIT_UNKNOWN
    assert facts["error"] == f"process 77 {HELD}"


@pytest.mark.parametrize("now", [True, False])
def test_stop_tells_it(capfd, now):
    place = Place()
    stopping = Stopping(cast(Folder, place), cast(Process, place.runs))
    stopping.request(now)
    assert f"vm: process 77 {HELD}" in capfd.readouterr().err
    assert len(place.runs.signals) == 1
