"""What the service manager hears of a real start, run and end; tiny guests."""

from __future__ import annotations

import select
import signal
import socket
import time

import pytest

from tests.support.command import HALT, Command, finish
from tests.support.speed import patience


class Service:
    """The command with a notification socket, and what came over it."""

    def __init__(self, folder, **settings: object) -> None:
        path = str(folder / "notify")
        self.manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.manager.bind(path)
        self.manager.settimeout(patience(20))
        self.command = Command(folder, HALT, **settings)
        self.command.env["NOTIFY_SOCKET"] = path

    def until(self, words: str) -> list[str]:
        """Everything up to the message with ``words``, that one included."""
        found: list[str] = []
        while not found or words not in found[-1]:
            found.append(self.manager.recv(4096).decode())
        return found


@pytest.fixture
def service(tmp_path):
    made: list[Service] = []

    def make(**settings: object) -> Service:
        made.append(Service(tmp_path, **settings))
        return made[-1]

    yield make
    for one in made:
        one.manager.close()


def test_phases(service):
    one = service(MEMORY_CONFIG="size=16M,prefault=on")
    process = one.command.start()
    told = one.until("READY=1")
    assert told[0].startswith("STATUS=booting ")
    assert told[1] == "STATUS=prefaulting 0 of 16 MiB\nEXTEND_TIMEOUT_USEC=60000000"
    assert told[2] == "READY=1\nSTATUS=running: 1 vCPUs, 16 MiB"
    process.send_signal(signal.SIGHUP)
    (reloading,) = one.until("RELOADING=1")
    assert "MONOTONIC_USEC=" in reloading
    assert one.until("READY=1")[-1].endswith("STATUS=running: 1 vCPUs, 16 MiB")
    process.send_signal(signal.SIGTERM)
    told = one.until("STOPPING=1")
    assert "STATUS=stopping: " in told[-1]
    time.sleep(1.2)  # within a second it would be the same request
    process.send_signal(signal.SIGTERM)
    assert "STATUS=failed: the guest was killed" in one.until("STOPPING=1")[-1]
    finish(process)


def test_bad_settings_are_told(service):
    one = service(CPU_COUNT="many", MEMORY_CONFIG="size=lots")
    assert one.command.run("start")[0] == 2
    (told,) = one.until("STATUS")
    assert told.startswith("STATUS=failed: VLLMD_HYPERVISOR_CPU_COUNT=many: ")
    assert "; VLLMD_HYPERVISOR_MEMORY_CONFIG=size=lots: " in told


def test_a_stopped_process_misses_its_watchdog(service):
    one = service()
    one.command.env["WATCHDOG_USEC"] = "200000"
    process = one.command.start()
    one.until("READY=1")
    for _ in range(3):
        one.until("WATCHDOG=1")
    process.send_signal(signal.SIGSTOP)
    time.sleep(0.1)
    while select.select([one.manager], [], [], 0)[0]:
        one.manager.recv(4096)  # sent before it was stopped
    assert not select.select([one.manager], [], [], 0.5)[0]
    process.send_signal(signal.SIGCONT)
    one.until("WATCHDOG=1")
    one.command.run("stop", "--now")
    finish(process)
