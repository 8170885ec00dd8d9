"""Guest RAM in huge pages with shared=on, as `status`, `check` and the log tell it."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.support.command import COMMAND, Command, finish
from tests.support.guest_asm import Program
from tests.support.seccomp import answer
from vmm._native.memory.guestmem import GuestMemory

MIB = 1 << 20
FSOPEN = 430
# Writes to its third huge page.
HIGH = bytes(Program().write(5 * MIB, 1).out_string(0x3F8, b"up\n").raw("f4 ebfd").code)
SHARED = "size=16M,shared=on"


def huge_kib(pid: int) -> int:
    """Of a process's shared memory, mapped in huge pages."""
    lines = Path(f"/proc/{pid}/smaps").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("ShmemPmdMapped:"))


def descriptors(pid: int) -> set[str]:
    folder = Path(f"/proc/{pid}/fd")
    return {os.readlink(folder / name) for name in os.listdir(folder)}


@pytest.fixture
def tmpfs() -> None:
    memory = GuestMemory([(0, 4 * MIB)], shared=True)
    backing, refused = memory.backing, memory.refused
    memory.close()
    if backing != "tmpfs":
        pytest.skip(f"this host gives {backing}: {refused}")


@pytest.mark.usefixtures("tmpfs")
def test_a_guest_s_pages_are_huge(tmp_path):
    command = Command(tmp_path, HIGH, MEMORY_CONFIG=SHARED)
    process = command.start()
    try:
        facts = json.loads(command.run("status", "--json")[1])
        memory = facts["memory"]
        assert (memory["backing"], memory["huge"], memory["huge_refused"]) == ("tmpfs", True, None)
        assert huge_kib(process.pid) == 2 << 10
        assert memory["rss"]["shmem"] >= 2 * MIB
        names = descriptors(process.pid)
        assert [name for name in names if "(deleted)" in name]
        assert not [name for name in names if "fscontext" in name]
        # The file system stays, for the file of a reboot.
        assert "/" in names
        mounts = [Path(f"/proc/{who}/mountinfo").read_text() for who in ("self", process.pid)]
        assert mounts[0] == mounts[1]
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        assert not children.exists() or children.read_text() == ""
    finally:
        command.run("stop", "--now")
    text = finish(process)[1]
    assert "4 KiB" not in text


def test_a_refusal_is_told_and_ends_nothing(tmp_path):
    command = Command(tmp_path, HIGH, MEMORY_CONFIG=SHARED, LOG_FILEPATH=tmp_path / "log")
    process = command.start(preexec_fn=lambda: answer(FSOPEN, errno.ENOSYS))
    try:
        memory = json.loads(command.run("status", "--json")[1])["memory"]
        text = command.run("status")[1]
    finally:
        command.run("stop", "--now")
    finish(process)
    if memory["huge"]:
        pytest.skip("this host gives memfds huge pages")
    assert memory["backing"] == "memfd"
    assert memory["huge_refused"] == "fsopen: Function not implemented"
    assert "4 KiB pages (fsopen: Function not implemented)" in text
    log = (tmp_path / "log").read_text()
    assert log.count("guest RAM is in pages of 4 KiB") == 1, log
    code, told = check_without_fsopen(command)
    assert code == 0
    assert told["level"] == "warning"
    assert told["cure"] == ["echo advise >/sys/kernel/mm/transparent_hugepage/shmem_enabled"]
    assert "fsopen: Function not implemented" in told["found"]


def check_without_fsopen(command: Command) -> tuple[int, dict[str, object]]:
    done = subprocess.run(
        [COMMAND, "check", "--json"], env=command.env, capture_output=True, text=True,
        preexec_fn=lambda: answer(FSOPEN, errno.ENOSYS), check=False,
    )  # fmt: skip
    report = json.loads(done.stdout)
    (told,) = [found for found in report["findings"] if found["name"] == "memory-pages"]
    return done.returncode, told


@pytest.mark.parametrize(
    ("memory", "words"),
    [
        (SHARED, "may have huge pages"),
        ("size=16M,shared=off", "guest RAM (anonymous) may have huge pages"),
        ("size=16M,shared=on,thp=off", "guest RAM (memfd) in pages of 4 KiB: thp=off"),
    ],
)
@pytest.mark.usefixtures("tmpfs")
def test_check_tells_of_the_pages(tmp_path, memory, words):
    command = Command(tmp_path, HIGH, MEMORY_CONFIG=memory)
    code, text = command.run("check")
    assert code == 0, text
    assert words in text
