"""What two vCPUs and the control thread change at once: VMM and device stay whole."""

from __future__ import annotations

import sys
import threading
import time

import pytest

from devices.acpi_pm import Ged
from tests.kvm.test_exhaustion import low_bars
from tests.support.guest_asm import Program
from tests.support.log_lines import log_lines
from tests.support.speed import patience
from tests.support.tiny_machine import TinyMachine
from tests.support.two_vcpus import (
    AP_CODE,
    COMMON_STATUS,
    RealMode,
    activate,
    loop,
    race,
    wake_others,
)
from vmm._native.kvm.bus import CONTINUE, SHUTDOWN

CONSOLE, DISK, RNG = 1, 2, 4
COMMAND, BAR0, BAR1 = 4, 0x10, 0x14
MSIX_CONTROL_OFFSET = 2
ROUNDS = 300


def function_in(tiny: TinyMachine, slot: int):
    function = tiny.machine.virtio[slot - 1]
    assert function.slot == slot
    return function


def toggle_decoding(tiny: TinyMachine, slot: int) -> RealMode:
    return RealMode().config(slot, COMMAND, 0, 2).config(slot, COMMAND, 2, 2)


def move_about(tiny: TinyMachine, slot: int) -> RealMode:
    home = function_in(tiny, slot).bar.value
    return RealMode().config(slot, BAR0, home + 0x4000000).config(slot, BAR0, home)


def switch_msix(tiny: TinyMachine, slot: int) -> RealMode:
    control = function_in(tiny, slot)._msix_offset + MSIX_CONTROL_OFFSET
    return RealMode().config(slot, control, 0x8000, 2).config(slot, control, 0, 2)


@pytest.mark.parametrize("change", [toggle_decoding, move_about, switch_msix])
@pytest.mark.parametrize(("slot", "queues"), [(DISK, 2), (CONSOLE, 2), (RNG, 1)])
def test_activation_and_reset_while_another_vcpu_changes_it(tmp_path, slot, queues, change):
    with TinyMachine(tmp_path, b"\xf4", CPU_COUNT=2) as tiny, log_lines() as lines:
        bar = low_bars(tiny)[slot]
        body = activate(Program(), bar, queues).write(bar + COMMON_STATUS, 0, 1)
        outcome = race(tiny, body, change(tiny, slot).for_ever(), ROUNDS)
        assert outcome.kind == "shutdown", outcome.report
        assert lines.records == []
        belled(tiny, slot, queues)


def belled(tiny: TinyMachine, slot: int, queues: int) -> None:
    """The device is whole: it can be started anew, and its doorbells are where its BAR is."""
    function = function_in(tiny, slot)
    pci = tiny.machine.pci
    pci.config_write(0, slot, 0, COMMAND, 2, 2)
    for register, value in ((0x14, 0), (0x14, 1), (0x14, 3)):
        function.write(register, value, 1)
    function.write(0x08, 1, 4)
    function.write(0x0C, 1, 4)
    function.write(0x14, 0xB, 1)
    for queue in range(queues):
        function.write(0x16, queue, 2)
        for register in (0x20, 0x28, 0x30):
            base = 0x300000 + 0x4000 * queue + 0x1000 * (register - 0x20) // 8
            function.write(register, base, 8)
        function.write(0x1C, 1, 2)
    function.write(0x14, 0xF, 1)
    assert function.read(0x14, 1) == 0xF
    for base in (0xE4000000, 0xE4800000):
        pci.config_write(0, slot, 0, BAR0, base, 4)
        assert [gpa for gpa, _ in function._belled] == [
            base + 0x6000 + 4 * queue for queue in range(queues)
        ]
    function.write(0x14, 0, 1)
    assert function._belled == []


def test_the_control_thread_asks_while_vcpus_change_everything(tmp_path):
    with TinyMachine(tmp_path, b"\xf4", CPU_COUNT=2) as tiny, log_lines() as lines:
        bars = low_bars(tiny)
        body = Program()
        for slot, queues in ((DISK, 2), (CONSOLE, 2), (RNG, 1)):
            activate(body, bars[slot], queues)
            body.write(bars[slot] + COMMON_STATUS, 0, 1)
        program = loop(wake_others(Program()), body, ROUNDS)
        tiny.load(program.power_off())
        tiny.machine.memory.write(AP_CODE, move_about(tiny, DISK).for_ever())
        machine = tiny.machine
        machine.start()
        boot = machine.vcpus[0].loop
        asked = 0
        deadline = time.monotonic() + patience(60)
        while boot.outcome == CONTINUE and time.monotonic() < deadline:
            machine.status()
            machine.activity()
            machine.resize(80 + asked % 2, 25)
            machine.power_button()
            asked += 1
        assert boot.outcome == SHUTDOWN
        assert asked > 10
        assert lines.records == []


def test_no_press_of_the_power_button_is_lost():
    """The control thread presses while vCPUs read: each press is seen once."""

    class Line:
        def pulse(self) -> None: ...

    ged = Ged(Line())
    seen = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            if ged.read(0, 1):
                seen.append(1)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    readers = [threading.Thread(target=read) for _ in range(2)]
    try:
        for reader in readers:
            reader.start()
        for n in range(2000):
            ged.power_button()
            deadline = time.monotonic() + patience(5)
            while len(seen) <= n and time.monotonic() < deadline:
                time.sleep(0)
            assert len(seen) == n + 1
    finally:
        done.set()
        sys.setswitchinterval(before)
        for reader in readers:
            reader.join()
