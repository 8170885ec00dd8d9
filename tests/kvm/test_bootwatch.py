"""Guests that stand still at boot, each in its way, and guests that only look as if they did."""

from __future__ import annotations

import subprocess
import time

import pytest

from tests.support.elf_builder import build_elf
from tests.support.guest_asm import Program
from tests.support.speed import patience
from tests.support.tiny_machine import TinyMachine
from vmm.guest.symbolat import symbol_at
from vmm.log.hub import hub
from vmm.run import bootwatch
from vmm.run.eventloop import EventLoop

SPIN = "ebfe"
STEP, STILL, WATCH = 0.05, 0.4, 1.2
PAUSES, PAUSES_SECONDS = 60, 20


class Lines:
    """A log sink that keeps what it gets."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, level: int, name: str, message: str, fields: object = ()) -> None:
        self.text += message + "\n"

    def reopen(self) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.fixture
def told(tmp_path, monkeypatch):
    """Runs a guest under a hurried watch; what the log says then."""
    monkeypatch.setattr(bootwatch, "STEP_SECONDS", STEP)
    monkeypatch.setattr(bootwatch, "STILL_SECONDS", STILL)
    monkeypatch.setattr(bootwatch, "WATCH_SECONDS", WATCH)
    lines = Lines()
    monkeypatch.setattr(hub, "sinks", [lines])

    def run(program: Program, held: bool = False, **settings: object) -> str:
        loop = EventLoop()
        with TinyMachine(tmp_path, bytes(program.code), **settings) as tiny:
            watch = bootwatch.BootWatch(tiny.machine, tiny.config, tiny.consoles, loop)
            tiny.machine.start()
            assert not held or tiny.machine.vcpus[0].hold(10_000)
            end = time.monotonic() + WATCH + patience(0.5)
            loop.call_later(WATCH + patience(0.5), lambda: None)
            loop.run_until(lambda: time.monotonic() >= end or bool(lines.text))
            watch.stop()
        loop.close()
        return lines.text

    return run


def test_a_loop_without_exits(told):
    text = told(Program().raw(SPIN))
    assert "makes no progress" in text
    assert "its boot vCPU busy at 0x100006" in text
    assert "vCPU 0: running" in text
    assert "code at rip: eb fe" in text


def test_halted_for_ever(told):
    text = told(Program().raw("f4 ebfd"), CPU_COUNT=2)
    assert "halted with interrupts off" in text
    assert "vCPU 0: halted" in text
    assert "vCPU 1: waiting for INIT" in text


def test_polling_one_port_is_no_progress(told):
    # in al, 0x64; jmp back
    text = told(Program().raw("e464 ebfc"))
    assert "makes no progress" in text
    assert "io 0x64 -> 0x00" in text


def test_output_is_progress(told):
    # mov dx,0x3f8; mov al,'x'; out; a pause; again
    assert told(Program().raw("66baf803 b078 ee b900100000 e2fe ebf3")) == ""


def test_waiting_with_interrupts_on_is_no_hang(told):
    assert told(Program().raw("fb f4 ebfd")) == ""


def test_held_by_somebody_is_no_hang(told):
    assert told(Program().raw(SPIN), held=True) == ""


def test_output_that_nobody_sees(told):
    program = Program().out_string(0x3F8, b"hello").raw("fb f4 ebfd")
    assert "CONSOLE" in told(program, SERIAL="null", CONSOLE="tty")


def test_registers_of_a_paused_guest(tmp_path):
    """Paused again and again: it stands while paused, goes on afterwards, and can be ended."""
    # inc eax; jmp back
    with TinyMachine(tmp_path, bytes(Program().raw("40 ebfd").code)) as tiny:
        vcpu = tiny.machine.vcpus[0]
        tiny.machine.start()
        seen: set[int] = set()
        end = time.monotonic() + patience(PAUSES_SECONDS)
        # A busy machine may not let it run between two pauses.
        while len(seen) < PAUSES and time.monotonic() < end:
            assert vcpu.loop.pause()
            first, again = vcpu.fd.get_regs(), vcpu.fd.get_regs()
            assert first == again
            assert 0x100000 <= first["rip"] <= 0x100007
            seen.add(first["rax"])
            vcpu.loop.resume()
            time.sleep(0.001)
        assert len(seen) == PAUSES
        assert vcpu.loop.pause()
        tiny.machine.stop_vcpus()
        assert not vcpu.loop.running
        assert not vcpu.loop.pause()


SOURCE = """
.globl _start
_start: nop
.type quiet_loop, @function
quiet_loop: jmp quiet_loop
"""


def test_symbols_of_an_elf(tmp_path):
    source, path = tmp_path / "guest.s", tmp_path / "guest"
    source.write_text(SOURCE)
    base = 0x100000
    subprocess.run(
        ["gcc", "-nostdlib", "-static", "-no-pie", f"-Wl,-Ttext={base:#x}", source, "-o", path],
        check=True,
    )
    assert symbol_at(str(path), base) == "_start"
    assert symbol_at(str(path), base + 1) == "quiet_loop"
    assert symbol_at(str(path), base + 2) == "quiet_loop+0x1"
    assert symbol_at(str(path), base - 1) is None


def test_symbols_of_a_map_beside_the_kernel(tmp_path):
    (tmp_path / "vmlinuz-1").write_bytes(b"MZ")
    assert symbol_at(str(tmp_path / "vmlinuz-1"), 0xFFFFFFFF81000010) is None
    (tmp_path / "System.map-1").write_text(
        "ffffffff81000000 T startup_64\nffffffff81000040 D not_code\nffffffff81000050 t later\n"
    )
    assert symbol_at(str(tmp_path / "vmlinuz-1"), 0xFFFFFFFF81000048) == "startup_64+0x48"
    assert symbol_at(str(tmp_path / "vmlinuz-1"), 0xFFFFFFFF81000050) == "later"


def test_symbols_of_damaged_files(tmp_path):
    path = tmp_path / "kernel"
    for content in (b"", b"\x7fELF", build_elf(b"\xf4")[:70], build_elf(b"\xf4")):
        path.write_bytes(content)
        assert symbol_at(str(path), 0x100000) is None
