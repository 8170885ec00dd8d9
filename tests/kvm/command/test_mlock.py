"""mlock=on: guest RAM that comes to no swap device, over reboots too, or a start that says why."""

from __future__ import annotations

import re
import resource
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.command import COMMAND, HALT, Command
from tests.support.counting_instance import instance, rebooted, resetting
from tests.support.speed import patience

RAM_KIB = 16 << 10


def locked_kib(pid: int) -> int:
    """What a process has locked."""
    found = re.search(r"^VmLck:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])


@pytest.mark.parametrize("kind", ["shared=on", "shared=on,thp=off", "shared=off,prefault=on"])
def test_ram_is_locked_over_reboots(tmp_path, kind):
    settings = {"MEMORY_CONFIG": f"size=16M,mlock=on,{kind}"}
    with instance(tmp_path, resetting(), **settings) as (command, process):
        assert rebooted(command, process)["memory"]["locked"] is True
        # Between two guests there is none, or not all.
        deadline = time.monotonic() + patience(20)
        found = 0
        while found != RAM_KIB and time.monotonic() < deadline:
            found = locked_kib(process.pid)
        assert found == RAM_KIB


def limited(*command: str) -> list[str]:
    """The command with 8 MiB to lock and no right to more."""
    return ["setpriv", "--bounding-set=-ipc_lock", "--inh-caps=-ipc_lock", *command]


def limit() -> None:
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (8 << 20, 8 << 20))


@pytest.mark.parametrize("verb", ["start", "check"])
def test_a_limit_is_told_before_anything_is_done(tmp_path, verb):
    command = Command(tmp_path, HALT, MEMORY_CONFIG="size=16M,mlock=on")
    done = subprocess.run(
        limited(COMMAND, verb), env=command.env, preexec_fn=limit, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 38, done.stdout
    assert "16 MiB will be locked (mlock=on), but RLIMIT_MEMLOCK is 8 MiB" in done.stdout
    assert f"memlock {RAM_KIB}" in done.stdout
