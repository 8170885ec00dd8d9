"""guest.gdb() with Debian's gdb as the client."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
import time

import pytest

import vmm
from tests.support.elf_builder import LOAD_GPA
from tests.support.gdb import Gdb, batch
from tests.support.guest_asm import Program
from tests.support.long_mode import TABLES, long_mode
from tests.support.speed import patience
from tests.support.tiny_guest import tiny_guest
from tests.support.two_vcpus import AP_CODE, wake_others
from vmm.debug.abilities import ABILITIES
from vmm.debug.gdb.packets import encode
from vmm.errors import HostError
from vmm.settings.parse import BadValue

# mov eax, 0; then for ever: inc eax; jmp back
COUNT = bytes.fromhex("b800000000 83c001 ebfb")
LOOP = LOAD_GPA + 5
JUMP = LOAD_GPA + 8
# In long mode: call +8; nop; nop; jmp back to the call; nop; at +10: mov eax, 7; ret
CALL = bytes.fromhex("e805000000 90 90 ebf7 90 b807000000 c3")
FUNCTION = LOAD_GPA + 10
# The second vCPU, in real mode: a jump to a segment at 0, then: inc ax; jmp back
FLAT = AP_CODE + 5
COUNT_IN_REAL_MODE = bytes.fromhex("ea05800000 40 ebfd")

# What gdb knows of registers, without what `monitor` has made of them.
FORGET = "maintenance flush register-cache"


@pytest.fixture
def guest(tmp_path):
    with tiny_guest(tmp_path, COUNT) as made:
        yield made


def wait_for(what, seconds: float = 20) -> None:
    deadline = time.monotonic() + patience(seconds)
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_breakpoint_step_registers_and_memory(guest):
    with guest.gdb("127.0.0.1:0") as server:
        text = batch(
            server.address, f"hbreak *{JUMP:#x}", "continue", "p/x $eax", "stepi", "p/x $pc",
            "set $rax=0x41", "continue", "p/x $rax", f"x/5xb {LOAD_GPA:#x}",
            f"set *(int*){0x200000:#x}=0x12345678", f"x/1xw {0x200000:#x}", "info registers cr0",
            "set $xmm3.uint128=0x77", "p/x $xmm3.uint128", "p $mxcsr", "p $fctrl",
            "x/1xb 0xf0000000",
        )  # fmt: skip
    found = re.findall(r"^\$\d+ = (.*)$", text, re.MULTILINE)
    assert found[:3] == ["0x1", hex(LOOP), "0x42"], text
    assert found[3:] == ["0x77", "[ IM DM ZM OM UM PM ]", "895"], text
    assert "0xb8\t0x00\t0x00\t0x00\t0x00" in text
    assert "0x12345678" in text
    assert re.search(r"cr0\s+0x1\s", text), text
    assert "Cannot access memory at address 0xf0000000" in text
    wait_for(lambda: guest.running)
    assert guest.pause().kind == "paused"
    assert guest.cpus[0].regs.rax > 0x42
    assert guest.memory.read(0x200000, 4) == bytes.fromhex("78563412")


@pytest.mark.skipif(
    not (ABILITIES.port or ABILITIES.int3), reason="this KVM does no software breakpoints"
)
def test_software_breakpoints_are_never_seen(guest):
    with guest.gdb("127.0.0.1:0") as server:
        text = batch(
            server.address, f"break *{LOOP:#x}", "continue", "continue", "continue", "p/x $rax",
            f"x/2xb {LOOP:#x}", "delete", "stepi", "stepi", "p/x $pc",
        )  # fmt: skip
    assert len(re.findall("^Breakpoint 1, ", text, re.MULTILINE)) == 3, text
    assert "$1 = 0x2" in text
    assert "0x83\t0xc0" in text
    assert f"$2 = {LOOP:#x}" in text
    assert guest.pause() is not None
    assert guest.memory.read(LOAD_GPA, len(COUNT)) == COUNT


def test_next_over_a_call_finish_and_cr3_in_long_mode(tmp_path):
    with tiny_guest(tmp_path, CALL) as guest:
        long_mode(guest)
        with guest.gdb("127.0.0.1:0") as server:
            text = batch(
                server.address, "set $rax=0", "nexti", "p/x $pc", "p $rax",
                "info registers cr3 efer",
                f"break *{FUNCTION:#x}", "continue", "p/x *(long*)$rsp", "bt 1",
                "monitor translate 0x1234", "monitor translate 0x40000000",
                "monitor msr 0xc0000080",
                "monitor cr3", "monitor msr 0xc0000102 0x1000", FORGET, "p/x $k_gs_base",
                "monitor msr 0x12345678", "monitor reset", "monitor nonsense", "monitor phys on",
                "x/1xg 0x300000", "monitor phys off", "x/1xg 0x40000000", "monitor info regs",
            )  # fmt: skip
    found = re.findall(r"^\$\d+ = (.*)$", text, re.MULTILINE)
    assert found == [hex(LOAD_GPA + 5), "7", hex(LOAD_GPA + 5), "0x1000"], text
    assert re.search(r"cr3\s+0x300000\s", text)
    assert re.search(r"efer\s+0x500\s", text)
    assert "0x1234 is at gpa 0x1234" in text
    assert "0x40000000 is not mapped" in text
    assert "msr 0xc0000080 0x500" in text
    assert "cr3 0x300000" in text
    assert "KVM has no such register" in text
    assert "a reset is not possible" in text
    assert "no command 'nonsense'" in text
    assert "0x0000000000301023" in text
    assert "Cannot access memory at address 0x40000000" in text
    assert "gdt base=" in text


def test_cr3_and_an_msr_are_written(tmp_path):
    """By `monitor` and as registers of gdb's: addresses are those of the new page tables."""
    other = TABLES + 0x8000
    with tiny_guest(tmp_path, CALL) as guest:
        long_mode(guest)
        guest.memory.write(other, guest.memory.read(TABLES, 8))
        with guest.gdb("127.0.0.1:0") as server:
            text = batch(
                server.address, f"monitor cr3 {other:#x}", FORGET, "p/x $cr3",
                f"set *(long *){other:#x} = 0", f"monitor translate {LOAD_GPA:#x}",
                f"monitor cr3 {TABLES:#x}", f"monitor translate {LOAD_GPA:#x}",
                FORGET, f"set $cr3 = {other:#x}", f"monitor translate {LOAD_GPA:#x}",
                f"set $cr3 = {TABLES:#x}", "monitor msr 0x176 0x1234", "monitor msr 0x176",
                "nexti", "p/x $pc", "detach",
            )  # fmt: skip
            wait_for(lambda: guest.running)
            guest.pause()
    found = re.findall(r"^\$\d+ = (.*)$", text, re.MULTILINE)
    assert found == [hex(other), hex(LOAD_GPA + 5)], text
    told = re.findall(f"{LOAD_GPA:#x} is (.*)$", text, re.MULTILINE)
    assert told == ["not mapped", f"at gpa {LOAD_GPA:#x}", "not mapped"], text
    assert text.count("msr 0x176 0x1234") == 2, text


def test_detach_and_attach_again(guest):
    with guest.gdb("127.0.0.1:0") as server:
        for _ in range(3):
            text = batch(server.address, "p/x $pc", "detach")
            assert "$1 = 0x1000" in text
            wait_for(lambda: guest.running)
            assert server.last_end == "detached"


def test_ctrl_c_makes_it_stand_still(guest):
    with guest.gdb("127.0.0.1:0") as server, Gdb(server.address) as gdb:
        for _ in range(3):
            gdb.send("continue")
            gdb.expect(b"Continuing")
            time.sleep(0.1)
            gdb.interrupt()
            assert "SIGINT" in gdb.expect()
        with pytest.raises(RuntimeError, match="pause"):
            guest.run()


def test_a_debugger_that_is_gone_leaves_a_running_guest_without_breakpoints(guest):
    with guest.gdb("127.0.0.1:0") as server:
        with Gdb(server.address) as gdb:
            gdb.type(f"hbreak *{LOOP:#x}")
            gdb.type("continue")
            gdb.kill()
        wait_for(lambda: server.last_end == "vanished")
        wait_for(lambda: guest.running)
        assert "$1 = " in batch(server.address, "p $rax")


def test_kill_ends_the_guest(guest):
    with guest.gdb("127.0.0.1:0") as server:
        batch(server.address, "kill")
        wait_for(lambda: guest.outcome is not None)
    assert guest.outcome.reason == "killed by the debugger"


def test_the_guests_end_is_told(tmp_path):
    with (
        tiny_guest(tmp_path, Program().power_off()) as guest,
        guest.gdb("127.0.0.1:0") as server,
    ):
        text = batch(server.address, "continue")
        assert "exited normally" in text
        assert "the guest powered itself off" in text
        assert guest.outcome.kind == "shutdown"


def test_one_that_crashed_can_be_looked_at(tmp_path):
    crash = bytes(Program().raw("b8 77000000 d935000000d0 f4").code)
    with tiny_guest(tmp_path, crash) as guest, guest.gdb("127.0.0.1:0") as server:
        text = batch(server.address, "continue", "p/x $rax", "continue")
        assert "SIGABRT" in text
        assert "$1 = 0x77" in text
        assert "Program terminated with signal SIGABRT" in text


def test_threads_are_vcpus(tmp_path):
    code = wake_others(Program())
    code.code += b"\xeb\xfe"
    with tiny_guest(tmp_path, bytes(code.code), cpu_count=2) as guest:
        guest.memory.write(AP_CODE, COUNT_IN_REAL_MODE)
        guest.run(seconds=0.5)
        with guest.gdb("127.0.0.1:0") as server:
            text = batch(
                server.address, "info threads", "thread 2", "p $ax", "stepi", "stepi", "p $ax",
                "set scheduler-locking on", "stepi", "stepi", "p $ax", f"hbreak *{FLAT:#x}",
                "set scheduler-locking off", "continue", "thread", "monitor info cpus",
            )  # fmt: skip
    assert len(re.findall(r"Thread [12] \(CPU [01] \[running\]\)", text)) >= 2, text
    first, second, third = [int(n) for n in re.findall(r"^\$\d+ = (-?\d+)$", text, re.MULTILINE)]
    assert (second - first) % 65536 == 1, text
    assert (third - second) % 65536 == 1, text
    assert "Current thread is 2" in text
    assert "thread 2: CPU 1 [running] at 0x8005" in text


def test_a_breakpoint_where_a_segment_hides_the_address_is_told(tmp_path):
    """In real mode rip is an offset: no breakpoint for gdb, but a stop."""
    with tiny_guest(tmp_path, bytes(wake_others(Program()).raw("ebfe").code), cpu_count=2) as guest:
        guest.memory.write(AP_CODE, bytes.fromhex("ebfe"))
        with guest.gdb("127.0.0.1:0") as server:
            text = batch(server.address, f"hbreak *{AP_CODE:#x}", "continue", "p/x $pc")
    assert "Thread 2 received signal SIGTRAP" in text
    assert "$1 = 0x0" in text


def test_watchpoints(tmp_path):
    code = Program().write(0x200000, 5).raw("90 ebfe")
    with tiny_guest(tmp_path, bytes(code.code)) as guest, guest.gdb("127.0.0.1:0") as server:
        text = batch(server.address, "watch *(int*)0x200000", "continue", "p *(int*)0x200000")
    assert "$1 = 5" in text
    assert "New value = 5" in text


def test_a_second_one_is_sent_away_and_the_first_goes_on(guest):
    with guest.gdb("127.0.0.1:0") as server, Gdb(server.address) as gdb:
        assert "Remote" in batch(server.address)
        assert "$1 = " in gdb.type("p $rax")


def test_who_sleeps_or_talks_nonsense_does_not_stop_the_guest(guest):
    guest.start()
    with guest.gdb("127.0.0.1:0") as server:
        host, _, port = server.address.partition(":")
        for words in (b"", b"GET / HTTP/1.0\r\n\r\n", bytes(range(4, 256)), b"+" * 1000):
            with socket.create_connection((host, int(port)), timeout=10) as link:
                link.sendall(words)
                time.sleep(0.05)
                assert guest.running
                assert not server.attached
        wait_for(lambda: "$1 = " in batch(server.address, "p $rax"))
        wait_for(lambda: guest.running)


def test_who_does_not_read_does_not_hold_it_for_ever(guest, monkeypatch):
    monkeypatch.setattr("vmm.debug.gdb.client.SEND_SECONDS", 0.2)
    with guest.gdb("127.0.0.1:0") as server:
        host, _, port = server.address.partition(":")
        with socket.create_connection((host, int(port)), timeout=10) as link:
            link.settimeout(patience(20))
            try:
                for _ in range(20_000):
                    link.sendall(encode(b"qXfer:features:read:target.xml:0,3000") * 50)
            except OSError:
                pass
            wait_for(lambda: server.last_end == "vanished")
        wait_for(lambda: guest.running)


def test_a_unix_socket_for_its_user_alone(guest, tmp_path):
    path = tmp_path / "gdb"
    with guest.gdb(str(path)) as server:
        assert path.stat().st_mode & 0o777 == 0o600
        assert "$1 = 0x100000" in batch(server.address, "p/x $pc")
        with pytest.raises(HostError, match="gdb socket"):
            guest.gdb(str(path))
    assert not path.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_another_user_is_sent_away(guest):
    call = (
        "import os, _socket, sys; os.setuid(int(sys.argv[2])); link = _socket.socket(); "
        "link.settimeout(10); link.connect(('127.0.0.1', int(sys.argv[1]))); "
        "link.sendall(b'$qSupported#37'); print(link.recv(100))"
    )
    with guest.gdb("127.0.0.1:0") as server:
        words = [sys.executable, "-I", "-c", call, server.address.rpartition(":")[2]]
        own = subprocess.run([*words, "0"], capture_output=True, text=True, check=True)
        wait_for(lambda: not server.attached)
        other = subprocess.run([*words, "65534"], capture_output=True, text=True, check=False)
    assert own.stdout.startswith("b'+"), own
    assert other.stdout == "b''\n" or "ConnectionResetError" in other.stderr, other


def test_only_loopback(guest):
    with pytest.raises(BadValue, match="not loopback"):
        guest.gdb("0.0.0.0:1234")


def test_serve_on_the_calling_thread_and_what_an_action_raises(guest):
    def fails(cpu):
        raise ZeroDivisionError(f"at {cpu.regs.rax}")

    guest.breakpoint(LOOP, fails)
    server = guest.gdb("127.0.0.1:0", thread=False)
    texts: list[str] = []
    client = threading.Thread(target=lambda: texts.append(batch(server.address, "continue")))
    client.start()
    with pytest.raises(ZeroDivisionError, match="at 0"):
        server.serve()
    client.join()
    assert "an action of the script failed" in texts[0]
    assert server.last_end == "detached"


def test_closing_the_guest_ends_the_visit(tmp_path):
    guest = tiny_guest(tmp_path, COUNT)
    server = guest.gdb("127.0.0.1:0")
    with Gdb(server.address) as gdb:
        gdb.send("continue")
        gdb.expect(b"Continuing")
        guest.close()
        assert "Remote connection closed" in gdb.expect()
    assert repr(server) == f"<gdb at {server.address}, closed>"


def test_a_run_of_the_script_comes_back_when_gdb_calls(guest):
    stops: list[vmm.Stop] = []
    thread = threading.Thread(target=lambda: stops.append(guest.run()))
    thread.start()
    wait_for(lambda: guest.running)
    with guest.gdb("127.0.0.1:0") as server:
        assert "$1 = " in batch(server.address, "p $rax")
    thread.join()
    assert stops[0].kind == "paused"
