"""VLLMD_HYPERVISOR_GDB: gdb attaches to a service's instance, which goes on being a service."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time

import pytest

from tests.support.command import COMMAND, HALT, RESET, Command, finish
from tests.support.elf_builder import LOAD_GPA
from tests.support.gdb import Gdb, batch
from tests.support.guest_asm import Program
from tests.support.speed import patience
from tests.support.two_vcpus import AP_CODE, wake_others
from vmm.run.control import ask

UP = Program().out_string(0x3F8, b"up\n")
COUNT = bytes(UP.raw("b800000000 83c001 ebfb").code)
LOOP = LOAD_GPA + len(COUNT) - 5
# The second one has a jump to itself.
TWO = bytes(
    wake_others(Program().write(AP_CODE, 0xFEEB, 2)).out_string(0x3F8, b"up\n").raw("ebfe").code
)


@pytest.fixture
def instance(tmp_path):
    command = Command(tmp_path, COUNT, GDB=tmp_path / "gdb", STOP_TIMEOUT_SECONDS="0.2")
    process = command.start()
    yield command, process, str(tmp_path / "gdb")
    process.kill()
    process.communicate()


def test_it_runs_at_once_and_breakpoints_hit(instance):
    command, process, address = instance
    text = batch(address, f"hbreak *{LOOP:#x}", "continue", "stepi", "p/x $pc", "info threads")
    assert "Breakpoint 1, " in text
    assert f"$1 = {LOOP + 3:#x}" in text
    command.run("stop")
    code, log = finish(process)
    assert code == 37
    assert "gdb attached: the guest stands still" in log
    assert "gdb detached: the guest goes on" in log


def test_status_vcpus_and_stop_while_the_guest_stands_still(instance):
    command, process, address = instance
    with Gdb(address) as gdb:
        where = gdb.type("p/x $pc")
        facts = json.loads(command.run("status", "--json")[1])
        assert facts["gdb"] == {"address": address, "attached": True}
        assert facts["state"] == "running"
        (told,) = ask(facts["sockets"]["control"], {"command": "vcpus"})["vcpus"]
        assert "vCPU 0: running" in told
        assert gdb.type("p/x $pc")[-12:] == where[-12:]
        command.run("stop")
        assert re.search("connection closed|disconnected", gdb.type("stepi"))
    assert finish(process)[0] == 37


def test_kill_ends_the_instance(instance):
    _, process, address = instance
    batch(address, "kill")
    code, log = finish(process)
    assert (code, "killed: by the debugger" in log) == (37, True)


def test_one_that_vanishes_leaves_it_running(instance):
    command, _, address = instance
    with Gdb(address) as gdb:
        gdb.type(f"hbreak *{LOOP:#x}")
        gdb.type("continue")
        gdb.kill()
    deadline = time.monotonic() + patience(20)
    while json.loads(command.run("status", "--json")[1])["gdb"]["attached"]:
        assert time.monotonic() < deadline
    assert "$1 = " in batch(address, "p $rax")


def test_waiting_at_the_entry_point(tmp_path):
    command = Command(tmp_path, HALT, GDB=f"{tmp_path}/gdb,wait", STOP_TIMEOUT_SECONDS="0.2")
    process = subprocess.Popen(
        [COMMAND, "start"], env=command.env, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    deadline = time.monotonic() + patience(20)
    while not (tmp_path / "gdb").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    text = batch(str(tmp_path / "gdb"), "p/x $pc", "detach")
    assert f"$1 = {LOAD_GPA:#x}" in text
    time.sleep(0.3)
    command.run("stop", "--now")
    code, log = finish(process)
    assert "waits at its entry point" in log
    assert "up\n" in log
    assert code == 37


def test_a_reboot_ends_the_visit_and_the_next_machine_has_one_again(tmp_path):
    command = Command(tmp_path, RESET, GDB=f"{tmp_path}/gdb,wait")
    process = subprocess.Popen(
        [COMMAND, "start"], env=command.env, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + patience(20)
        while not (tmp_path / "gdb").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        for _ in range(3):
            text = batch(str(tmp_path / "gdb"), "continue")
            assert "exited normally" in text, text
            assert "the guest ended" in text
        facts = json.loads(command.run("status", "--json")[1])
        assert facts["reboots"] in (2, 3)
        batch(str(tmp_path / "gdb"), "kill")
        assert finish(process)[0] == 37
    finally:
        process.kill()
        process.communicate()


def test_two_vcpus_over_tcp(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = Command(tmp_path, TWO, CPU_COUNT=2, GDB=address, STOP_TIMEOUT_SECONDS="0.2")
    process = command.start()
    try:
        with Gdb(address) as gdb:
            assert "Thread 2" in gdb.type("info threads")
            gdb.send("continue")
            gdb.expect(b"Continuing")
            gdb.interrupt()
            assert "SIGINT" in gdb.expect()
            assert "thread 2: CPU 1" in gdb.type("monitor info cpus")
        command.run("stop", "--now")
        assert finish(process)[0] == 37
    finally:
        process.kill()
        process.communicate()


def test_an_address_in_use_is_an_error_before_anything_starts(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, text = Command(tmp_path, HALT, GDB=f"127.0.0.1:{port}").run("start")
    assert code not in (0, 1), text
    assert f"cannot listen for gdb at 127.0.0.1:{port}" in text


def test_another_machines_address_is_a_bad_setting(tmp_path):
    code, text = Command(tmp_path, HALT, GDB="0.0.0.0:1234").run("start")
    assert code == 2
    assert "not loopback" in text


def test_without_it_nothing_of_a_debugger_is_imported(tmp_path):
    command = Command(tmp_path)
    code = (
        "import sys; from vmm.command.cli import main; sys.argv[1:] = ['start']; main(); "
        "print([m for m in sys.modules if m.startswith('vmm.debug')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=command.env, check=True, capture_output=True, text=True
    )
    assert done.stdout.endswith("[]\n"), done.stdout
