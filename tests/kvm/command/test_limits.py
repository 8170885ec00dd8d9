"""What the host refuses: KVM, descriptors, folders, full disks."""

from __future__ import annotations

import os
import resource
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.command import COMMAND, HALT, Command, finish
from tests.support.speed import patience


def after(step: str) -> tuple[str, ...]:
    """A shell that does something first, and becomes the command that follows."""
    return ("sh", "-c", f'{step} && exec "$0" "$@"')


def test_no_kvm(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("needs root to hide /dev/kvm in a mount namespace")
    command = Command(tmp_path)

    def without(mount: str) -> tuple[int, str]:
        return command.run("start", under=("unshare", "-m", *after(f"mount {mount}")))

    code, text = without("-t tmpfs tmpfs /dev")
    assert code == 38, text
    assert "this host has no KVM" in text
    assert "modprobe" in text
    code, text = without("-B /dev/null /dev/kvm")
    assert code == 38, text
    assert "/dev/kvm is not KVM" in text


def test_too_few_descriptors(tmp_path):
    """At whichever step they run out: a message, a code that says so, nothing left locked."""
    command = Command(tmp_path)
    for limit in range(6, 32, 2):
        code, text = command.run("start", under=after(f"ulimit -n {limit}"))
        assert code == 38, (limit, text)
        assert "Too many open files" in text, (limit, text)
        assert "Traceback" not in text, (limit, text)
    assert command.run("start")[0] == 0


def test_there_is_room_for_more_descriptors_than_a_machine_has(tmp_path):
    """Where a thread is there, the kernel waits for all processors to enlarge their table."""
    command = Command(tmp_path, HALT, CPU_COUNT=16)
    process = command.start()
    status = Path(f"/proc/{process.pid}/status").read_text()
    room = int(status.partition("FDSize:")[2].split()[0])
    assert room >= 2 * len(os.listdir(f"/proc/{process.pid}/fd")) > 2 * 64
    command.run("stop", "--now")
    finish(process)


def test_too_few_descriptors_to_check(tmp_path):
    """The code that a start has, whatever check itself could not look at."""
    command = Command(tmp_path)
    for limit in range(6, 32, 9):
        for verb in ("check", "env", "status"):
            code, text = command.run(verb, under=after(f"ulimit -n {limit}"))
            assert "Traceback" not in text, (limit, verb, text)
            assert code == 38 or verb != "check", (limit, text)


def test_the_guest_outlives_requests_that_find_no_descriptor(tmp_path):
    """All that are left are taken away; a client is told so, or turned away, and may come again."""
    command = Command(tmp_path, HALT)
    process = command.start()
    limits = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
    used = len(os.listdir(f"/proc/{process.pid}/fd"))
    for free in (0, 1, 2):
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (used + free, limits[1]))
        for _ in range(3):
            command.run("status")
        assert process.poll() is None
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, limits)
    code, text = command.run("status")
    assert (code, "vm: running" in text) == (0, True), text
    assert command.run("stop", "--now")[0] == 0
    assert process.wait(patience(10)) == 37


def test_a_runtime_folder_that_cannot_be_used(tmp_path):
    command = Command(tmp_path)
    command.env["XDG_RUNTIME_DIR"] = "/proc/nowhere"
    code, text = command.run("start")
    assert code == 38
    assert "XDG_RUNTIME_DIR" in text


def test_output_on_a_full_disk_and_into_a_pipe_that_closes():
    for verb in ("--version", "--help"):
        with open("/dev/full", "wb") as full:
            done = subprocess.run(
                [COMMAND, verb], env={}, stdout=full, stderr=subprocess.PIPE, check=False
            )
        assert done.returncode == 1
        assert b"stdout: the output cannot be written: No space left on device\n" in done.stderr
        assert done.stderr.count(b"\n") == 1
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(
            [COMMAND, verb], env={}, stdout=writer, stderr=subprocess.PIPE, check=False
        )
        os.close(writer)
        assert (done.returncode, done.stderr) == (1, b"")


def test_closed_standard_streams_are_not_given_to_images(tmp_path):
    """Nothing that is opened later takes the place of stdout, and so what is printed."""
    command = Command(tmp_path, HALT)
    process = subprocess.Popen(["sh", "-c", f"exec {COMMAND} start <&- >&- 2>&-"], env=command.env)
    while command.run("status")[0] != 0:
        assert process.poll() is None
        time.sleep(0.05)
    for fd in (0, 1, 2):
        assert os.readlink(f"/proc/{process.pid}/fd/{fd}") == "/dev/null"
    command.run("stop", "--now")
    assert process.wait(patience(20)) == 37
    assert (tmp_path / "system.img").read_bytes() == bytes(1 << 20)
