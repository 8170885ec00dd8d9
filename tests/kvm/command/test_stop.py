"""A guest is told to end: politely, twice, too late, by force."""

from __future__ import annotations

import signal
import time

import pytest

from tests.support.command import HALT, Command, finish


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_and_the_timeout_kills(tmp_path, number):
    command = Command(tmp_path, HALT, STOP_TIMEOUT_SECONDS=1)
    process = command.start()
    process.send_signal(number)
    code, text = finish(process)
    assert code == 37
    assert "power button" in text
    assert "within 1 s" in text


def test_a_second_signal_kills_at_once(tmp_path):
    process = Command(tmp_path, HALT, STOP_TIMEOUT_SECONDS=600).start()
    process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert finish(process)[0] == 37


def test_stop_kills_a_vmm_that_hangs(tmp_path):
    command = Command(tmp_path, HALT, STOP_TIMEOUT_SECONDS=0)
    process = command.start()
    process.send_signal(signal.SIGSTOP)
    code, text = command.run("stop", seconds=60)
    assert code == 37
    assert "was killed" in text
    assert finish(process)[0] == -signal.SIGKILL
