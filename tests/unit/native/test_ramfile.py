"""Shared RAM in huge pages: root's, nobody's; refused at each step, it is a memfd that says why."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.process import open_descriptors, thread_count
from tests.support.seccomp import FALLOCATE, KILL, answer
from vmm._native.memory.guestmem import GuestMemory

ROOT = Path(__file__).resolve().parents[3]
MIB = 1 << 20
NOBODY = 65534
PR_SET_DUMPABLE = 4
CLONE, OPENAT, FSOPEN, FSCONFIG, FSMOUNT = 56, 257, 430, 431, 432
SET_STRING, CREATE = 1, 6
FOR_WRITING = os.O_WRONLY | os.O_CLOEXEC
UNNAMED = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC
WAIT_ALL = 0x40000000  # __WALL: children that send no signal, too
WHO = pytest.mark.parametrize("uid", [0, NOBODY], ids=["root", "nobody"])
# Step as it is told, and what answers it with an error: see answer().
REFUSALS = {
    "fsopen": (FSOPEN, errno.EPERM),
    "fsopen: Function": (FSOPEN, errno.ENOSYS),
    "fsconfig(size)": (FSCONFIG, errno.EINVAL, SET_STRING),
    "fsconfig(create)": (FSCONFIG, errno.ENOMEM, CREATE),
    "fsmount": (FSMOUNT, errno.EACCES),
    "open(O_TMPFILE)": (OPENAT, errno.EACCES, UNNAMED, 2),
}


def in_place(uid: int, refusal: tuple[int, ...]) -> None:
    """As this user, make memory with this refusal, and print what came of it."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if uid:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        # As after an exec by that user: else its /proc/self is root's.
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
    if refusal:
        answer(*refusal)
    before = traces()
    memory = GuestMemory([(0, 16 * MIB)], shared=True)
    memory.write(0, b"low")
    memory.write(5 * MIB, b"high")
    memory.prefault(1)
    told = {
        "backing": memory.backing, "huge": memory.huge, "refused": memory.refused,
        "read": (memory.read(0, 3) + memory.read(5 * MIB, 4)).decode(), "mapped": huge_kib(),
    }  # fmt: skip
    memory.close()
    told["left"] = [repr(pair) for pair in zip(before, traces(), strict=True) if pair[0] != pair[1]]
    print(json.dumps(told))


def traces() -> tuple[object, ...]:
    """What must be after it as it was before."""
    try:
        child: object = os.waitpid(-1, WAIT_ALL)
    except ChildProcessError:
        child = None
    return (
        open_descriptors(), thread_count(), child, signal.pthread_sigmask(signal.SIG_BLOCK, []),
        Path("/proc/self/mountinfo").read_text(), os.readlink("/proc/self/ns/user"),
        os.readlink("/proc/self/ns/mnt"), Path("/proc/self/uid_map").read_text(),
        "(deleted)" in Path("/proc/self/maps").read_text(),
    )  # fmt: skip


def huge_kib() -> int:
    """Of this process's shared memory, in huge pages."""
    lines = Path("/proc/self/smaps").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("ShmemPmdMapped:"))


def made(uid: int, *refusal: int) -> dict[str, object]:
    """The same in a process of its own."""
    if os.geteuid() != 0 and uid != os.geteuid():
        pytest.skip("needs root, to become others")
    code = f"from {__name__} import in_place; in_place({uid}, {refusal})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.returncode} {done.stderr}"
    told: dict[str, object] = json.loads(done.stdout)
    assert told["read"] == "lowhigh"
    assert told["left"] == []
    return told


def made_if_it_may(uid: int) -> dict[str, object]:
    """What this host gives without a refusal of ours."""
    told = made(uid)
    if told["backing"] != "tmpfs":
        pytest.skip(f"this host gives {told['backing']}: {told['refused']}")
    return told


@WHO
def test_huge_pages_are_there(uid):
    told = made_if_it_may(uid)
    assert told["huge"] is True
    assert told["refused"] is None
    # All but the first 2 MiB, which stay in small pages.
    assert told["mapped"] == 14 * 1024


@WHO
def test_under_a_filter_of_system_calls(uid):
    """The child then has a copy of the memory; it makes the same."""
    made_if_it_may(uid)
    told = made(uid, FALLOCATE, errno.EPERM)
    assert (told["backing"], told["mapped"]) == ("tmpfs", 14 * 1024)


@WHO
@pytest.mark.parametrize("step", REFUSALS)
def test_what_is_refused_is_told_and_a_memfd_does(uid, step):
    made_if_it_may(uid)
    told = made(uid, *REFUSALS[step])
    assert (told["backing"], told["huge"], told["mapped"]) == ("memfd", False, 0)
    assert str(told["refused"]).startswith(step)


@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        ((CLONE, errno.EPERM), "clone: Operation not permitted"),
        ((CLONE, errno.ENOSPC), "clone: No space left on device"),
        ((OPENAT, errno.EACCES, FOR_WRITING, 2), "/proc/self/setgroups: Permission denied"),
    ],
    ids=["namespaces", "too many", "ids"],
)
def test_namespaces_are_refused(refusal, words):
    made_if_it_may(NOBODY)
    told = made(NOBODY, *refusal)
    assert (told["backing"], told["refused"]) == ("memfd", words)


@WHO
@pytest.mark.parametrize(
    ("step", "call"), [("fsopen", FSOPEN), ("fsconfig(size)", FSCONFIG), ("fsmount", FSMOUNT)]
)
def test_a_filter_that_kills_ends_the_child_alone(uid, step, call):
    made_if_it_may(uid)
    told = made(uid, call, KILL)
    assert told["backing"] == "memfd"
    assert told["refused"] == f"{step}: the process that tried was killed"


def test_without_thp_nothing_is_tried():
    memory = GuestMemory([(0, 4 * MIB)], shared=True, thp=False)
    assert (memory.backing, memory.huge, memory.refused) == ("memfd", False, None)
    memory.close()


def test_what_holds_memory_is_told():
    memory = GuestMemory([(0, 4 * MIB)])
    assert (memory.backing, memory.huge, memory.refused) == ("anonymous", True, None)
    memory.close()


@pytest.mark.parametrize("shared", [False, True])
def test_host_addresses_lie_as_the_guest_s_do(shared):
    regions = [(0, 1536 * MIB), (1 << 32, 1024 * MIB), ((1 << 33) + 3 * MIB, 16 * MIB)]
    memory = GuestMemory(regions, shared=shared)
    try:
        for (gpa, size, hva), alignment in zip(
            memory.slots, (1 << 30, 1 << 30, 2 * MIB), strict=True
        ):
            assert (hva - gpa) % alignment == 0, (hex(gpa), size, hex(hva))
    finally:
        memory.close()


def test_settling_is_once_and_at_the_latest_at_the_end():
    before = open_descriptors()
    memory = GuestMemory([(0, 4 * MIB)], shared=True)
    assert len(open_descriptors()) > len(before)
    memory.settle()
    memory.settle()
    assert len(open_descriptors()) == len(before) + 1
    memory.write(3 * MIB, b"there")
    assert memory.read(3 * MIB, 5) == b"there"
    memory.close()
    assert open_descriptors() == before
