"""A running instance is confined: what its threads may, by the kernel's word and by trying."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

import vmm
from tests.support import counting_instance
from tests.support.command import HALT, Command, finish
from tests.support.counting_instance import rebooted, resetting, running
from tests.support.speed import patience
from vmm._native.host import confine

FILTERED = "2"
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
LANDLOCKED = confine.landlock_abi() > 0


def threads(pid: int) -> dict[str, dict[str, str]]:
    """What the kernel tells of each thread, by its name."""
    found = {}
    for thread in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{thread}/status", encoding="utf-8") as file:
            facts = dict(line.split(":", 1) for line in file)
        facts = {key: value.strip() for key, value in facts.items()}
        found[facts["Name"]] = facts
    return found


def in_sight() -> list[str]:
    """Interfaces of this network namespace, which an instance shares."""
    return [name for _, name in socket.if_nameindex() if name != "lo"]


def confinement(command: Command) -> dict[str, object]:
    code, text = command.run("status", "--json")
    assert code == 0, text
    return json.loads(text)["confinement"]


def instance(folder, code=HALT, **settings):
    return counting_instance.instance(folder, code, **settings)


def test_every_thread_is_confined(tmp_path):
    with instance(tmp_path, CPU_COUNT=2, LOG_FILEPATH=tmp_path / "log") as (command, process):
        assert confinement(command) == {
            "seccomp": "on", "landlock": confine.landlock_abi(),
            "capabilities": [], "core_dumps": False, "attach": False, "network": in_sight(),
        }  # fmt: skip
        named = {"vcpu0", "vcpu1", "serial", "hands"}
        deadline = time.monotonic() + patience(10)
        while not named <= set(found := threads(process.pid)):
            assert time.monotonic() < deadline, found
            time.sleep(0.02)
        for name, facts in found.items():
            assert (facts["NoNewPrivs"], facts["Seccomp"]) == ("1", FILTERED), name
            for kind in ("CapEff", "CapPrm", "CapInh", "CapAmb"):
                assert int(facts[kind], 16) == 0, (name, kind)
        assert command.run("stop")[0] in (0, 37)
        assert finish(process)[0] == 37


def test_a_network_namespace_of_its_own_has_no_interface():
    code = "from vmm.confine.lockdown import interfaces; print(interfaces())"
    for words, wanted in (((), in_sight()), (("unshare", "--net"), [])):
        done = subprocess.run(
            [*words, sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
        if words and "unshare failed" in done.stderr:
            pytest.skip(done.stderr)
        assert done.stdout == f"{wanted}\n", done.stderr


def test_without_filters_and_with_filters_that_log(tmp_path):
    for word, mode in (("off", "0"), ("log", FILTERED)):
        folder = tmp_path / word
        folder.mkdir()
        with instance(folder, SECCOMP=word) as (command, process):
            assert confinement(command)["seccomp"] == word
            assert confinement(command)["core_dumps"]
            for facts in threads(process.pid).values():
                assert (facts["NoNewPrivs"], facts["Seccomp"]) == ("1", mode)
                assert int(facts["CapEff"], 16) == 0


def test_no_core_and_no_descriptor_that_was_left_open(tmp_path):
    read, write = os.pipe()
    command = Command(tmp_path, HALT, STOP_TIMEOUT_SECONDS="0.2")
    process = command.start(pass_fds=(read, write))
    try:
        with open(f"/proc/{process.pid}/limits", encoding="ascii") as file:
            core = [line for line in file if line.startswith("Max core file size")]
        assert core[0].split()[4:6] == ["0", "0"]
        links = os.listdir(f"/proc/{process.pid}/fd")
        ends = [os.readlink(f"/proc/{process.pid}/fd/{fd}") for fd in links]
        assert os.readlink(f"/proc/self/fd/{read}") not in ends
        # Dumpable 0: what belongs to its user alone belongs to root, and is of mode 0500 anyhow.
        assert os.stat(f"/proc/{process.pid}/fd").st_uid == 0
    finally:
        process.kill()
        process.communicate()
        os.close(read)
        os.close(write)


@pytest.mark.parametrize("thp", ["on", "off"])
def test_guest_ram_cannot_be_cut_off(tmp_path, thp):
    settings = {"MEMORY_CONFIG": f"size=16M,shared=on,thp={thp}", "ATTACH": "on"}
    with running(tmp_path, **settings) as (command, process):
        links = [f"/proc/{process.pid}/fd/{fd}" for fd in os.listdir(f"/proc/{process.pid}/fd")]
        ram = [link for link in links if "guest-ram" in os.readlink(link)]
        backing = json.loads(command.run("status", "--json")[1])["memory"]["backing"]
        assert len(ram) == (backing == "memfd")
        for link in ram:
            fd = os.open(link, os.O_RDWR)
            try:
                assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) & SEALS == SEALS
                with pytest.raises(PermissionError):
                    os.ftruncate(fd, 4096)
            finally:
                os.close(fd)


def test_nobody_looks_in_unless_that_was_said_at_the_start(tmp_path):
    with instance(tmp_path) as (command, _):
        with pytest.raises(vmm.HostError, match="VLLMD_HYPERVISOR_ATTACH=on"):
            vmm.attach("vm", environment=command.env)
        code, text = command.run("dump", "vm", str(tmp_path / "core"))
        assert code == 38
        assert "VLLMD_HYPERVISOR_ATTACH=on" in text
        assert not (tmp_path / "core").exists()


@pytest.mark.parametrize(
    "memory", ["size=16M,shared=on", "size=16M,shared=on,thp=off", "size=16M,shared=off"]
)
def test_a_reboot_opens_nothing_that_is_closed_to_it(tmp_path, memory):
    """RAM anew in the same kind of file, and the kernel that is no longer there."""
    with instance(tmp_path, MEMORY_CONFIG=memory) as (command, _):
        first = json.loads(command.run("status", "--json")[1])["memory"]
    with instance(tmp_path, resetting(), MEMORY_CONFIG=memory) as (command, process):
        facts = rebooted(command, process)
    assert facts["memory"]["backing"] == first["backing"]
    assert facts["memory"]["huge_refused"] == first["huge_refused"]


def test_a_kernel_that_is_replaced_does_not_stop_a_reboot(tmp_path):
    """The reboot has the kernel of the start."""
    command = Command(tmp_path, resetting())
    process = command.start()
    try:
        (tmp_path / "guest.elf").unlink()
        (tmp_path / "guest.elf").write_bytes(b"no kernel")
        assert process.stdout is not None
        text = b""
        while text.count(b"up\n") < 3:
            data = os.read(process.stdout.fileno(), 4096)
            assert data, text
            text += data
    finally:
        process.kill()
        process.communicate()


def test_logs_are_rotated(tmp_path):
    folder = tmp_path / "logs"
    folder.mkdir()
    log = folder / "log"
    with instance(tmp_path, LOG_FILEPATH=log, CONSOLE=f"file={folder}/console") as (_, process):
        for name in ("log", "console"):
            (folder / name).rename(folder / f"{name}.1")
        process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + patience(10)
        while not log.exists() or "reopened" not in log.read_text():
            assert time.monotonic() < deadline, (folder / "log.1").read_text()
            time.sleep(0.02)
        assert (folder / "console").exists()
        assert "cannot" not in log.read_text()


FORBIDDEN = """
import ctypes, os, sys
from vmm._native.host import confine
from vmm.confine.programs import PROGRAMS
kind, call, logged, *arguments = [int(word) for word in sys.argv[1:]]
log = os.open(os.environ["LOG"], os.O_WRONLY | os.O_CREAT)
syscall = ctypes.CDLL(None, use_errno=True).syscall
confine.arm(PROGRAMS, bool(logged), 0)
confine.lock_privileges()
confine.no_core()
confine.lock_calls(kind, log)
code = syscall(call, *arguments)
os._exit(99)
"""


def ends(tmp_path, kind: int, call: int, *arguments: int, logged: int = 0):
    words = [str(word) for word in (kind, call, logged, *arguments)]
    return subprocess.run(
        [sys.executable, "-c", FORBIDDEN, *words], env={**os.environ, "LOG": str(tmp_path / "log")},
        capture_output=True, text=True, timeout=patience(30), check=False,
    )  # fmt: skip


@pytest.mark.parametrize("kind", range(confine.KINDS))
def test_a_forbidden_call_ends_the_process_and_is_told(tmp_path, kind):
    getppid = 110
    done = ends(tmp_path, kind, getppid)
    assert done.returncode == 31, done
    assert "system call 110 (getppid)" in done.stderr
    assert "VLLMD_HYPERVISOR_SECCOMP=log" in done.stderr
    assert (tmp_path / "log").read_text() == done.stderr


def test_the_same_with_the_argument_of_a_neighbour(tmp_path):
    ioctl, tiocsti = 16, 0x5412
    assert ends(tmp_path, 0, ioctl, 0, tiocsti).returncode == 31
    tgkill = 234
    assert ends(tmp_path, 0, tgkill, 1, 1, 0).returncode == 31


def test_a_forbidden_call_is_done_where_it_is_only_logged(tmp_path):
    assert ends(tmp_path, 1, 110, logged=1).returncode == 99


@pytest.mark.skipif(not LANDLOCKED, reason="this kernel has no Landlock")
def test_files_that_no_rule_names_are_closed(tmp_path):
    """What is said to be closed is closed: in a child under the rules of an instance."""
    from types import SimpleNamespace

    from vmm.confine import rules

    (tmp_path / "own").mkdir()
    (tmp_path / "secret").write_text("x")
    nothing = SimpleNamespace(kind="null", path="")
    config = SimpleNamespace(
        log_destinations=(str(tmp_path / "logs/log"),), console=nothing, serial=nothing, gdb=None,
        devices=(),
    )  # fmt: skip
    (tmp_path / "logs").mkdir()
    found = rules.rules(config, str(tmp_path / "own"), str(tmp_path), -1)
    ruled = confine.landlock_abi()
    pid = os.fork()
    if pid == 0:
        try:
            ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)
            confine.landlock(rules.handled(ruled), rules.TCP if ruled >= 4 else 0, 0, found)
            (tmp_path / "own/state").write_text("y")
            (tmp_path / "logs/log").write_text("z")
            os.listdir("/proc/self")
            closed = [
                lambda: open(tmp_path / "secret"), lambda: open(tmp_path / "new", "w"),
                lambda: open("/etc/hostname"), lambda: os.listdir("/root"),
                lambda: os.mkdir(tmp_path / "own/sub"), lambda: open(tmp_path / "logs/log"),
                lambda: os.symlink("a", tmp_path / "own/link"),
            ]  # fmt: skip
            for number, attempt in enumerate(closed):
                try:
                    attempt()
                except PermissionError:
                    continue
                os._exit(10 + number)
            os._exit(0)
        except BaseException as error:
            os.write(2, repr(error).encode())
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
