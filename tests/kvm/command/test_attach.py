"""vmm.attach(): a script looks at an instance's guest, holds it, and cannot keep it from ending."""

from __future__ import annotations

import json
import mmap
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

import vmm
from tests.support.command import HALT, Command, finish
from tests.support.counting_instance import (
    COUNTER,
    FLAG,
    LOOP,
    MAGIC,
    MAGIC_AT,
    count,
    counting,
    goes_on,
    reset,
    running,
    stands_still,
)  # fmt: skip
from tests.support.guest_asm import Program
from tests.support.speed import patience
from tests.support.two_vcpus import AP_CODE, wake_others
from vmm.debug.attach import link
from vmm.errors import BusyError, NotRunningError, UnknownInstanceError
from vmm.run.attach import door

SHARED = "size=16M,shared=on"
# The second one jumps to itself.
TWO = bytes(
    wake_others(Program().write(AP_CODE, 0xFEEB, 2)).out_string(0x3F8, b"up\n").raw("ebfe").code
)
BOTH = pytest.mark.parametrize("memory", [SHARED, "size=16M"], ids=["shared", "private"])
KILLED_WHILE_HOLDING = """
import os, sys, time, vmm
attached = vmm.attach("vm", environment=dict(os.environ))
attached.pause()
if os.fork():
    print("held", flush=True)
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
time.sleep(10)
"""


def attach(command: Command, **options: object):
    return vmm.attach("vm", environment=command.env, **options)


def facts(command: Command) -> dict[str, object]:
    return json.loads(command.run("status", "--json")[1])


@BOTH
def test_it_reads_what_the_guest_wrote(tmp_path, memory):
    with running(tmp_path, MEMORY_CONFIG=memory) as (command, _), attach(command) as attached:
        assert attached.memory.read(MAGIC_AT, 4) == MAGIC.to_bytes(4, "little")
        assert attached.memory.regions == [(0, 16 << 20)]
        assert len(attached.memory.read(0, 16 << 20)) == 16 << 20
        assert MAGIC_AT in attached.memory.find(MAGIC.to_bytes(4, "little"))
        assert attached.cpus[0].memory.read_u32(MAGIC_AT) == MAGIC
        assert goes_on(attached)
        for gpa, length in ((16 << 20, 1), ((16 << 20) - 1, 2), (-1, 1)):
            with pytest.raises(ValueError, match="is not inside guest RAM"):
                attached.memory.read(gpa, length)
        assert "16 MiB" in repr(attached)
        assert facts(command)["attached"] == {"clients": 1, "holding": 0}


def test_numpy_shows_shared_ram_live_and_read_only(tmp_path):
    with running(tmp_path, MEMORY_CONFIG=SHARED) as (command, _), attach(command) as attached:
        seen = attached.memory.numpy(COUNTER, 1, "uint32")
        first, deadline = int(seen[0]), time.monotonic() + patience(10)
        while seen[0] == first:
            assert time.monotonic() < deadline
        assert not seen.flags.writeable
        with pytest.raises(vmm.HostError, match="attached to read only"):
            attached.memory.write(FLAG, b"\1")
        # What was handed over cannot be mapped writable, whoever tries.
        with pytest.raises(PermissionError):
            mmap.mmap(attached._link.ram_fd, 4096, access=mmap.ACCESS_WRITE)
        with pytest.raises(OSError, match="."):
            os.ftruncate(attached._link.ram_fd, 0)
        del seen


def test_private_ram_cannot_be_mapped_and_says_what_helps(tmp_path):
    with running(tmp_path) as (command, _), attach(command) as attached:
        with pytest.raises(vmm.HostError, match=r"is private \(shared=off\).*shared=on"):
            attached.memory.numpy(0, 1)
        with pytest.raises(vmm.HostError, match="attached to read only"):
            attached.memory.write(FLAG, b"\1")


@BOTH
def test_what_is_written_reaches_the_guest(tmp_path, memory):
    with running(tmp_path, MEMORY_CONFIG=memory) as (command, process):
        with attach(command, write=True) as attached:
            attached.memory.write(FLAG + 0x1000, bytes(range(256)) * 1024)
            assert attached.memory.read(FLAG + 0x1000, 1 << 18) == bytes(range(256)) * 1024
            attached.memory.write(FLAG, b"\1")
        assert finish(process)[0] == 0


def test_a_descriptor_to_write_has_its_size_sealed(tmp_path):
    """No mistake of a script cuts the guest's RAM off under it."""
    with (
        running(tmp_path, MEMORY_CONFIG=f"{SHARED},thp=off") as (command, _),
        attach(command, write=True) as attached,
    ):
        with pytest.raises(PermissionError):
            os.ftruncate(attached._link.ram_fd, 0)
        assert goes_on(attached)


def test_registers_of_a_running_and_of_a_held_guest(tmp_path):
    with running(tmp_path) as (command, _), attach(command) as attached:
        cpu = attached.cpus[0]
        first = cpu.regs.rax
        assert any(cpu.regs.rax != first for _ in range(1000))
        assert cpu.regs.rbx == attached.cpus[0].regs.as_dict()["rbx"]
        assert cpu.sregs.cr0 & 1
        assert len(cpu.xsave) == 4096
        assert len(cpu.lapic) == 1024
        assert cpu.events["nmi"]["injected"] == 0
        assert cpu.msrs[0x10] < cpu.msrs[0x10]
        with pytest.raises(KeyError, match="KVM has no such register"):
            cpu.msrs[0x12345]
        with attached.paused():
            assert attached.is_paused
            assert "held" in repr(attached)
            assert cpu.regs.rax in (count(attached), count(attached) + 1)
            assert cpu.regs.rip == cpu.address
            assert stands_still(attached)
        with pytest.raises(vmm.HostError, match="attached to read only"):
            cpu.regs.rax = 1


def test_registers_are_assigned_while_the_guest_is_held(tmp_path):
    with running(tmp_path) as (command, _), attach(command, write=True) as attached:
        with pytest.raises(vmm.HostError, match=r"runs \(pause\(\) it before"):
            attached.cpus[0].regs.rax = 1
        with attached.paused():
            attached.cpus[0].regs.rax = 0xF0000000
            attached.cpus[0].sregs.cr2 = 0x1234
        assert goes_on(attached)
        assert count(attached) >= 0xF0000000
        assert attached.cpus[0].sregs.cr2 == 0x1234


def test_two_vcpus_stand_still_together(tmp_path):
    with running(tmp_path, TWO, CPU_COUNT=2) as (command, _), attach(command) as attached:
        with attached.paused():
            assert attached.cpus[1].sregs.cs["base"] == AP_CODE
            assert [cpu.index for cpu in attached.cpus] == [0, 1]
            assert facts(command)["attached"] == {"clients": 1, "holding": 1}
        assert facts(command)["attached"] == {"clients": 1, "holding": 0}


def test_the_guest_goes_on_when_one_that_holds_it_is_killed(tmp_path):
    """Also where a child of his has the connection still."""
    with running(tmp_path, MEMORY_CONFIG=SHARED) as (command, _), attach(command) as attached:
        holder = subprocess.Popen(
            [sys.executable, "-c", KILLED_WHILE_HOLDING], stdout=subprocess.PIPE,
            env={**os.environ, **command.env},
        )  # fmt: skip
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert stands_still(attached)
        holder.kill()
        holder.communicate()
        assert goes_on(attached)
        assert facts(command)["attached"] == {"clients": 1, "holding": 0}


def test_it_goes_on_only_when_nobody_holds_it(tmp_path):
    with running(tmp_path) as (command, _), attach(command) as one, attach(command) as other:
        one.pause()
        other.pause()
        one.resume()
        assert stands_still(one)
        other.close()
        assert goes_on(one)


@pytest.mark.parametrize("way", ["stop", "now", "signal"])
def test_a_held_guest_is_stopped_all_the_same(tmp_path, way):
    with running(tmp_path) as (command, process), attach(command) as attached:
        attached.pause()
        if way == "signal":
            process.send_signal(signal.SIGTERM)
        else:
            command.run("stop", *(["--now"] if way == "now" else []))
        code, log = finish(process)
        assert code == 37, log
        assert "holds the guest" in log
        with pytest.raises(vmm.HostError, match="rebooted or ended|closed the connection"):
            attached.memory.read(0, 1)


def test_one_that_is_being_stopped_goes_on_and_cannot_be_held(tmp_path):
    with (
        running(tmp_path, STOP_TIMEOUT_SECONDS="20") as (command, process),
        attach(command) as attached,
    ):
        attached.pause()
        process.send_signal(signal.SIGTERM)
        assert goes_on(attached)
        assert not attached.is_paused
        with pytest.raises(vmm.HostError, match="being stopped"):
            attached.pause()
        with attach(command) as later, pytest.raises(vmm.HostError, match="being stopped"):
            later.pause()


def test_a_reboot_ends_it_and_the_next_machine_can_be_attached_to(tmp_path):
    with running(tmp_path, counting(reset), MEMORY_CONFIG=SHARED) as (command, _):
        with attach(command, write=True) as attached:
            attached.memory.write(FLAG, b"\1")
            deadline = time.monotonic() + patience(20)
            with pytest.raises(vmm.HostError, match="rebooted or ended"):  # noqa: PT012
                while time.monotonic() < deadline:
                    attached.memory.read(FLAG, 1)
            assert "closed" in repr(attached)
            with pytest.raises(vmm.HostError, match="attach again"):
                attached.pause()
        while facts(command)["reboots"] != 1 or facts(command)["attached"] is not None:
            assert time.monotonic() < deadline
        with attach(command) as attached:
            assert attached.memory.read(FLAG, 1) == b"\0"
            assert goes_on(attached)


def test_unknown_and_ended_ones_are_refused_as_status_does(tmp_path):
    command = Command(tmp_path)
    with pytest.raises(UnknownInstanceError) as caught:
        vmm.attach("other", environment=command.env)
    assert str(caught.value) in command.run("status", "other")[1]
    command.run("start")
    with pytest.raises(NotRunningError, match="the instance vm does not run"):
        attach(command)


def test_one_that_gdb_may_drive_is_refused(tmp_path):
    with (
        running(tmp_path, GDB=tmp_path / "gdb") as (command, _),
        pytest.raises(vmm.HostError, match="VLLMD_HYPERVISOR_GDB"),
    ):
        attach(command)


def test_another_version_and_too_many_are_refused(tmp_path, monkeypatch):
    with running(tmp_path) as (command, _):
        many = [attach(command) for _ in range(door.SESSIONS_MAX)]
        with pytest.raises(BusyError, match="attached already"):
            attach(command)
        for each in many:
            each.close()
        monkeypatch.setattr(link, "PROTOCOL", 99)
        with pytest.raises(vmm.HostError, match=f"version {vmm.__version__}.*protocol 1, not 99"):
            attach(command)


def test_one_whose_process_is_suspended_says_so(tmp_path):
    with running(tmp_path) as (command, process):
        process.send_signal(signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)
        with pytest.raises(vmm.HostError, match="is stopped by a signal"):
            attach(command)


def test_nothing_is_left_on_either_side(tmp_path):
    def counted(pid: int) -> tuple[int, int]:
        descriptors = len(os.listdir(f"/proc/{pid}/fd"))
        return descriptors, len(os.listdir(f"/proc/{pid}/task"))

    with running(tmp_path, MEMORY_CONFIG=SHARED) as (command, process):
        attach(command).close()
        while facts(command)["attached"] != {"clients": 0, "holding": 0}:
            time.sleep(0.01)
        before = counted(process.pid), counted(os.getpid()), threading.active_count()
        for _ in range(20):
            with attach(command) as attached, attached.trace.start(), attached.paused():
                assert attached.memory.numpy(COUNTER, 4).size == 4
        while facts(command)["attached"] != {"clients": 0, "holding": 0}:
            time.sleep(0.01)
        assert (counted(process.pid), counted(os.getpid()), threading.active_count()) == before


def test_a_trace_has_the_exits_since_its_start(tmp_path):
    # Between two counts a byte to the POST code port.
    busy = Program().out_string(0x3F8, b"up\n").raw(LOOP.replace("74ef", "e680 74ed"))
    with running(tmp_path, bytes(busy.code)) as (command, _), attach(command) as attached:
        with attached.trace.start(rip=True) as trace:
            deadline = time.monotonic() + patience(20)
            while len(trace) < 100:
                assert time.monotonic() < deadline
            with attach(command) as other, pytest.raises(vmm.HostError, match="traces this guest"):
                other.trace.start()
        assert "POST code port" in str(trace.summary())
        found = trace.numpy()
        assert (found["address"] == 0x80).sum() >= 99
        assert trace.dropped == 0
    assert len(trace) == len(found)


def test_a_start_loads_nothing_of_it(tmp_path):
    code = (
        "import sys; from vmm.command.cli import main; sys.argv[1:] = ['start']; main(); "
        "print([m for m in sys.modules if 'attach' in m])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=Command(tmp_path).env, check=True,
        capture_output=True, text=True,
    )  # fmt: skip
    assert "vmm.run.attach" not in done.stdout
    assert "vmm.debug" not in done.stdout


def test_a_halted_guest_can_be_held(tmp_path):
    with running(tmp_path, HALT) as (command, _), attach(command) as attached, attached.paused():
        assert attached.cpus[0].regs.rip
