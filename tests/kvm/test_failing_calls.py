"""Each system call of a start and of a reboot fails once: it is told, and nothing stays behind."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.command import COMMAND, HELLO, RESET, Command
from tests.support.elf_builder import build_elf
from tests.support.journal import journal_guest
from tests.support.supervised import GOES_ON, Call, Supervised

ROOT = Path(__file__).parents[2]
FULL = os.environ.get("VLLMD_TEST_FULL") == "1"
# What the kernel documents for such calls; the longer matrix tries all of them.
CODES = {
    "mmap": [errno.ENOMEM], "clone3": [errno.EAGAIN], "clone": [errno.EAGAIN],
    "eventfd2": [errno.EMFILE, errno.ENFILE, errno.ENOMEM],
    "epoll_create1": [errno.EMFILE, errno.ENOMEM], "epoll_ctl": [errno.ENOSPC, errno.ENOMEM],
    "signalfd4": [errno.EMFILE, errno.ENODEV], "memfd_create": [errno.EMFILE, errno.ENOMEM],
    "ftruncate": [errno.ENOSPC], "fallocate": [errno.ENOSPC, errno.EIO],
    "io_uring_setup": [errno.ENOMEM, errno.EPERM], "io_uring_register": [errno.ENOMEM],
}  # fmt: skip
IOCTL_CODES = [errno.ENOMEM, errno.EINVAL, errno.EIO, errno.EMFILE, errno.ENOSPC]
# Of these the program can do without: it takes another way, and says nothing.
OPTIONAL = {"mmap", "fallocate", "KVM_CHECK_EXTENSION", "io_uring_setup", "io_uring_register"}


def codes_of(call: Call) -> list[int]:
    codes = CODES.get(call.name, IOCTL_CODES)
    return codes if FULL else codes[call.nth % len(codes) :][:1]


def named(call: Call, code: int, text: str) -> bool:
    """The message names the ioctl; of calls that mean nothing to people, what the host lacks."""
    if call.name.startswith("KVM_"):
        return any(name in text for name in call.names)
    plain = {"mmap": ("map", "memory", "pthread_create"), "fallocate": ("cache",)}
    return any(word in text for word in (os.strerror(code), *plain.get(call.name, ())))


class Again:
    """build_again.py, supervised: in each round one call fails. A context manager."""

    def __init__(self, folder: Path, **settings: object) -> None:
        command = Command(folder, HELLO, **settings)
        command.env["PYTHONPATH"] = str(ROOT)
        self._fails: Call | None = None
        self._code = 0
        self.happened = False
        self.run = Supervised(
            [sys.executable, "-m", "tests.support.build_again"], self._decide, env=command.env,
            stdin=subprocess.PIPE, stderr=None, cwd=ROOT,
        )  # fmt: skip
        assert self.run.process.stdout.readline() == b"ready\n"

    def _decide(self, call: Call) -> int:
        if not call.same(self._fails):
            return 0
        self.happened = True
        return self._code

    def once(self, fails: Call | None = None, code: int = 0) -> dict[str, object]:
        self._fails, self._code, self.happened = fails, code, False
        self.run.begin()
        self.run.process.stdin.write(b"\n")
        self.run.process.stdin.flush()
        return json.loads(self.run.process.stdout.readline())

    def __enter__(self) -> Again:
        return self

    def __exit__(self, *exception: object) -> None:
        self.run.end()


def check_failure(call: Call, code: int, told: dict[str, object]) -> None:
    what = (call, errno.errorcode[code], told)
    assert not told["left"], what
    if "error" not in told:
        # A guest whose device has failed may wait for ever; but it is told.
        assert told["end"] != "none" or told["log"], what
        assert call.name in OPTIONAL or told["log"], what
        return
    assert told["class"] in ("IoctlError", "OSError", "HostError", "MemoryError"), what
    assert named(call, code, str(told["error"])), what


@pytest.mark.timeout(900)
@pytest.mark.parametrize("guest", ["hello", pytest.param("journal", marks=pytest.mark.full)])
def test_each_call_of_a_machine_fails_once(tmp_path, guest):
    """As under reboots in one process: the second guest drives its disk before it ends."""
    settings = {"KERNEL_FILEPATH": journal_guest(tmp_path, 1)} if guest == "journal" else {}
    with Again(tmp_path, CPU_COUNT=2, **settings) as again:
        good = again.once()
        end = "reset" if guest == "journal" else "shutdown"
        assert (good["end"], good["left"]) == (end, ""), good
        calls = again.run.calls
        assert len([call for call in calls if call.name.startswith("KVM_")]) > 25
        happened = 0
        for call in calls:
            for code in codes_of(call):
                told = again.once(call, code)
                # Threads come in another order now and then.
                happened += again.happened
                if again.happened:
                    check_failure(call, code, told)
                else:
                    assert (told["end"], told["left"]) == (end, ""), (call, told)
        assert happened > 0.7 * len(calls)
        last = again.once()
        assert (last["end"], last["left"], last["threads"]) == (end, "", good["threads"])


def supervised_start(
    command: Command, fails: Call | None = None, code: int = 0, boots: int = 9
) -> tuple[int, str, bool, list[Call]]:
    """(exit code, output, whether it happened, calls). Killed when machine ``boots`` is begun."""
    happened = []

    def decide(call: Call) -> int:
        if call.boots == boots:
            run.process.kill()
        if not call.same(fails):
            return 0
        happened.append(call)
        return code

    run = Supervised([COMMAND, "start"], decide, env=command.env)
    status, text = run.end(5)
    return status, text, bool(happened), run.calls


def check_end(call: Call, refusal: int, code: int, text: str, seen: bool, good: int) -> None:
    """As without it, with a warning where that is due, or refused with its message."""
    what = (call, errno.errorcode[refusal], seen, code, text)
    if code == GOES_ON:
        # A write of the guest's that found no memory is lost, the last one too; that is told.
        assert call.name == "mmap", what
        assert "the guest goes on without it" in text, what
        return
    assert "Traceback" not in text or code == good, what
    if code == good:
        assert not seen or call.name in OPTIONAL or "warning" in text, what
        return
    assert seen, what
    assert code == 38, what
    assert " error " in text, what
    assert "(" in text.splitlines()[-1], what
    assert named(call, refusal, text), what


# In the default run: the last of each of these.
SOME = ("signalfd4", "KVM_CREATE_VM", "KVM_CREATE_VCPU", "KVM_IRQFD", "KVM_SET_LAPIC", "clone3")


def chosen(calls: list[Call]) -> list[Call]:
    if FULL:
        return calls
    return list({call.name: call for call in calls if call.name in SOME}.values())


@pytest.mark.timeout(1800)
def test_each_call_of_a_start_fails_once(tmp_path):
    """Message and exit code; nobody holds the lock, so the next one starts."""
    command = Command(tmp_path, HELLO)
    assert command.run("start")[0] == 0  # with what a first start leaves in caches
    code, text, _, calls = supervised_start(command)
    assert code == 0, text
    happened = 0
    for call in chosen(calls):
        for refusal in codes_of(call):
            code, text, seen, _ = supervised_start(command, call, refusal)
            happened += seen
            check_end(call, refusal, code, text, seen, good=0)
            if FULL:
                assert "running" not in command.run("status")[1]
    assert happened > 0.7 * len(chosen(calls))
    assert command.run("start")[0] == 0


def test_a_first_start_that_fails_leaves_no_folder(tmp_path):
    command = Command(tmp_path, HELLO)
    _, _, _, calls = supervised_start(command)
    command.set(NAME="other")
    last = next(call for call in reversed(calls) if call.name == "KVM_SET_LAPIC")
    code, text, _, _ = supervised_start(command, last, errno.ENOMEM)
    assert (code, "KVM_SET_LAPIC" in text) == (38, True), text
    assert [entry.name for entry in tmp_path.glob("vllmd-hypervisor/*")] == ["vm"]
    assert command.run("status")[0] == 4


@pytest.mark.timeout(1800)
def test_each_call_of_a_reboot_fails_once(tmp_path):
    """The taking apart of the first machine, and the making of the second."""
    command = Command(tmp_path, RESET)
    code, text, _, calls = supervised_start(command, boots=3)
    assert code == -signal.SIGKILL, text
    happened = 0
    for call in chosen([call for call in calls if call.boots == 2]):
        for refusal in codes_of(call):
            code, text, seen, _ = supervised_start(command, call, refusal, boots=3)
            happened += seen
            check_end(call, refusal, code, text, seen, good=-signal.SIGKILL)
            if FULL and code == 38:
                assert "failed" in command.run("status")[1]
    assert happened > 3
    (tmp_path / "guest.elf").write_bytes(build_elf(HELLO))
    assert command.run("start")[0] == 0
