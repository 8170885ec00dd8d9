"""What asks the guest to shut down: signals, a host that wants a device back, one that fails."""

from __future__ import annotations

import _signal
import os
from types import SimpleNamespace

import pytest

from vmm.confine.lockdown import Lockdown
from vmm.run import lifecycle
from vmm.run.ending import EXIT_DEVICE, EXIT_KILLED
from vmm.run.lifecycle import Lifecycle
from vmm.run.notify import Notifier
from vmm.run.outcome import Outcome
from vmm.run.runner import watch_devices
from vmm.run.status import STOPPING
from vmm.settings.config import PREFIX, Config

BDF = "0000:01:00.0"


class FakeMachine:
    def __init__(self) -> None:
        self.pressed = 0

    def power_button(self) -> None:
        self.pressed += 1

    def status(self) -> dict[str, object]:
        return {}

    def close(self) -> None:
        pass


@pytest.fixture
def life(tmp_path):
    names = ("KERNEL", "SYSTEM_IMAGE", "CONFIG_IMAGE")
    config = Config.from_env({f"{PREFIX}{name}_FILEPATH": "/none" for name in names})
    instance = SimpleNamespace(name="vm", socket_path="", write_state=lambda state: None)
    made = Lifecycle(config, instance, Notifier(), None)
    made.lockdown = Lockdown(config)
    made.machine = FakeMachine()
    yield made
    made.close()


@pytest.fixture
def signal():
    fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    yield fd
    os.close(fd)


def told_by(request_fd: int, error_fd: int) -> SimpleNamespace:
    """A machine with one device that tells by these."""
    signals = SimpleNamespace(request_fd=request_fd, error_fd=error_fd)
    function = SimpleNamespace(bdf=BDF, signals=signals)
    return SimpleNamespace(passed_through=lambda: [function])


def test_the_host_wants_it_back(life, signal):
    watch_devices(told_by(signal, -1), life.loop, life._on_device_wanted, life._on_device_error)
    os.eventfd_write(signal, 1)
    life.loop.run_until(lambda: life.state == STOPPING)
    assert life.machine.pressed == 1
    assert BDF in life._stop_reason
    # It asks again every ten seconds; that does not kill the guest.
    life._on_device_wanted(BDF)
    assert life.ending is None
    life._decide(Outcome("shutdown", "the guest powered itself off"), 1.0)
    assert life.ending.code == 0
    life.loop.remove(signal)


def test_it_fails(life, signal):
    watch_devices(told_by(-1, signal), life.loop, life._on_device_wanted, life._on_device_error)
    os.eventfd_write(signal, 1)
    life.loop.run_until(lambda: life.state == STOPPING)
    life._on_device_error(BDF)
    life._decide(Outcome("shutdown", "the guest powered itself off"), 1.0)
    assert life.ending.code == EXIT_DEVICE
    assert BDF in life.ending.reason
    life.loop.remove(signal)


def test_it_fails_and_the_guest_does_not_hear(life):
    life._on_device_error(BDF)
    life._on_stop_timeout()
    assert life.ending.code == EXIT_DEVICE


def signals(life, monkeypatch, *numbers: int) -> None:
    monkeypatch.setattr(lifecycle, "read_signalfd", lambda fd: numbers)
    life._on_signal()


def test_two_signals_at_once_are_one_request(life, monkeypatch):
    signals(life, monkeypatch, _signal.SIGTERM, _signal.SIGINT)
    signals(life, monkeypatch, _signal.SIGTERM)
    assert life.state == STOPPING
    assert life.ending is None
    life._stop_asked -= 1.1
    signals(life, monkeypatch, _signal.SIGTERM)
    assert life.ending.code == EXIT_KILLED


def test_a_signal_and_the_control_socket_are_one_request(life, monkeypatch):
    assert life._on_request({"command": "stop"})["state"] == STOPPING
    signals(life, monkeypatch, _signal.SIGTERM)
    life._on_request({"command": "stop"})
    assert life.ending is None
    life._on_request({"command": "stop", "now": True})
    assert life.ending.code == EXIT_KILLED


@pytest.mark.parametrize("command", [None, [[]] * 9, {"a": 1}, 1.5, "x" * 4000])
def test_commands_that_are_none(life, command):
    assert len(life._on_request({"command": command})["error"]) < 100
