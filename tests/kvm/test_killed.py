"""kill -9 at any moment of a guest that writes and flushes: what it flushed is there, unlocked."""

from __future__ import annotations

import errno
import os
import random
import select
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import COMMAND, Command
from tests.support.faulty_disk import FaultyDisk, needs_fuse
from tests.support.journal import IMAGE_BYTES, acknowledged, journal_guest, lost, said
from tests.support.seccomp import IO_URING_SETUP, answer
from tests.support.speed import patience

# The longest that a guest lives before it is killed, in seconds.
LIFE = 0.15


FDATASYNC = 75


def start(command: Command, **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [COMMAND, "start"], env=command.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, **options,
    )  # fmt: skip


def hear(process: subprocess.Popen[bytes], seconds: float, until: bytes = b"") -> bytes:
    """What it says in so many seconds, or until it has said this."""
    assert process.stdout is not None
    text = b""
    deadline = time.monotonic() + seconds
    while not until or until not in text:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([process.stdout], [], [], left)[0]:
            break
        data = os.read(process.stdout.fileno(), 1 << 16)
        if not data:
            break
        text += data
    return text


def one_life(command: Command, last: int, life: float) -> int:
    """Start, let it find what was acknowledged, kill it; the last that it acknowledged."""
    process = start(command)
    try:
        text = hear(process, patience(20), until=b"\na ")
        assert b"\na " in text, text
        text += hear(process, life)
        process.kill()
        text += process.communicate(timeout=patience(20))[0]
    finally:
        process.kill()
    assert process.returncode == -signal.SIGKILL
    words = said(text.decode())
    found = [number for word, number in words if word == "r"]
    assert len(found) == 1, text
    assert found[0] >= last, (found, last)
    assert not [word for word, _ in words if word in ("bad", "e")], text
    return max(last, acknowledged(text.decode()))


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("moments", [10, pytest.param(1000, marks=pytest.mark.full)])
def test_nothing_flushed_is_lost(tmp_path, moments):
    command = Command(tmp_path, KERNEL_FILEPATH=journal_guest(tmp_path))
    chance = random.Random(moments)
    last = 0
    for _ in range(moments):
        last = one_life(command, last, chance.uniform(0, LIFE))
        assert lost((tmp_path / "system.img").read_bytes(), last) == []
    assert last > moments


@needs_fuse
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("moments", [4, pytest.param(200, marks=pytest.mark.full)])
def test_nothing_flushed_is_lost_with_the_power(tmp_path, moments):
    """The disk has a cache, which is lost with each kill but for some torn pieces of it."""
    with FaultyDisk(tmp_path, IMAGE_BYTES) as disk:
        command = Command(tmp_path, KERNEL_FILEPATH=journal_guest(tmp_path))
        command.set(SYSTEM_IMAGE_FILEPATH=disk.path)
        chance = random.Random(moments)
        last = 0
        for number in range(moments):
            last = one_life(command, last, chance.uniform(0, LIFE))
            disk.power_loss(number)
            assert lost(bytes(disk.stable), last) == []
        flushes = [entry for entry in disk.log() if entry[0] == "flush"]
        assert len(flushes) >= moments


@needs_fuse
def test_flushes_that_are_none_are_found_out(tmp_path: Path):
    """A control: of a VMM whose fdatasync() does nothing, the judge of these tests finds losses."""

    def cheat() -> None:
        answer(IO_URING_SETUP, errno.ENOSYS)
        answer(FDATASYNC, 0)

    with FaultyDisk(tmp_path, IMAGE_BYTES) as disk:
        command = Command(tmp_path, KERNEL_FILEPATH=journal_guest(tmp_path))
        command.set(SYSTEM_IMAGE_FILEPATH=disk.path)
        process = start(command, preexec_fn=cheat)
        text = hear(process, patience(20), until=b"\na 00000020")
        process.kill()
        text += process.communicate()[0]
        disk.power_loss(1)
        last = acknowledged(text.decode())
        assert last >= 0x20
        assert lost(bytes(disk.stable), last)


@needs_fuse
def test_a_disk_whose_flush_fails_acknowledges_nothing_more(tmp_path: Path):
    """The guest is told of each, reads and writes go on, the next start begins anew."""
    with FaultyDisk(tmp_path, IMAGE_BYTES) as disk:
        command = Command(tmp_path, KERNEL_FILEPATH=journal_guest(tmp_path))
        command.set(SYSTEM_IMAGE_FILEPATH=disk.path)
        disk.rule("flush", 5, skip=3)
        process = start(command)
        text = hear(process, patience(20), until=b"\ne ") + hear(process, 0.1)
        assert "flush_failed" in command.run("status", "--json")[1]
        process.kill()
        text += process.communicate()[0]
        words = [word for word, _ in said(text.decode())]
        assert words[:5] == ["r", "a", "a", "a", "e"]
        assert set(words[5:]) == {"e"}
        disk.power_loss(1)
        assert lost(bytes(disk.stable), acknowledged(text.decode())) == []
        disk.heal()
        one_life(command, acknowledged(text.decode()), 0.1)
