"""The end of a run: whatever fails beside it, the guest's own end is what is told."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from vmm.confine.lockdown import Lockdown
from vmm.log.hub import LogHub, hub
from vmm.run.ending import Ending
from vmm.run.lifecycle import Lifecycle
from vmm.run.notify import Notifier
from vmm.run.outcome import Outcome
from vmm.settings.config import PREFIX, Config


class Part:
    """A disk, a console or a machine that cannot be closed."""

    def __init__(self) -> None:
        self.tried = 0
        self.outcome_fd = os.eventfd(0)

    def close(self) -> None:
        self.tried += 1
        os.close(self.outcome_fd)
        raise OSError(5, "Input/output error")

    def status(self) -> dict[str, object]:
        return {}

    def flush(self, seconds: float) -> None:
        raise OSError(5, "Input/output error")

    def passed_through(self) -> list[object]:
        return []


class Broken:
    """A sink that cannot even be closed."""

    def write(self, level, name, message, fields=()) -> None:
        pass

    def close(self) -> None:
        raise OSError(5, "Input/output error")


@pytest.fixture
def states():
    return []


@pytest.fixture
def life(states):
    names = ("KERNEL", "SYSTEM_IMAGE", "CONFIG_IMAGE")
    config = Config.from_env({f"{PREFIX}{name}_FILEPATH": "/none" for name in names})
    instance = SimpleNamespace(name="vm", socket_path="", write_state=states.append)
    made = Lifecycle(config, instance, Notifier(), None)
    made.lockdown = Lockdown(config)
    return made


def test_every_step_of_closing_is_tried(life, states):
    parts = [Part() for _ in range(4)]
    life.disks = parts[:2]
    life.consoles = parts[2:]
    life.ending = Ending(0, "the guest powered itself off")
    life.close()
    assert [part.tried for part in parts] == [1, 1, 1, 1]
    assert states[-1]["state"] == "stopped"
    assert states[-1]["last_exit"]["code"] == 0
    life.close()


def test_a_machine_that_cannot_be_closed_ends_as_its_guest_did(life, states, monkeypatch):
    monkeypatch.setattr(
        "vmm.run.lifecycle.outcome_of", lambda machine: Outcome("shutdown", "powered off")
    )
    life.machine = machine = Part()
    life._leave()
    life.close()
    assert machine.tried == 1
    assert life.ending.code == 0
    assert states[-1]["last_exit"]["reason"] == "powered off"


def test_a_log_that_cannot_be_closed_is_no_failure():
    made = LogHub()
    made.configure([Broken(), Broken()], debug=False)
    made.configure([], debug=False)
    assert made.sinks == []
    assert hub is not made
