"""QEMU's `edu` device, driven by tiny guests: registers, DMA both ways, MSI, and INTx by hand.

Source: QEMU's docs/specs/edu.rst.
"""

from __future__ import annotations

import struct
import tempfile
from pathlib import Path

from tests.kvm.test_pci import cf8_write
from tests.lab.guests.guest_run import expect
from tests.lab.scenarios.passthrough import EDU, IVSHMEM, bind, find
from tests.lab.scenarios.stalled import Stall, wait_for_end
from tests.support.guest_asm import Program
from tests.support.tiny_machine import TinyMachine
from vmm.layout import PM_TIMER_PORT
from vmm.run.outcome import outcome_of

IDENTITY, FACTORIAL, BUSY = 0x00, 0x08, 0x20
IRQ_STATUS, IRQ_RAISE, IRQ_ACK = 0x24, 0x60, 0x64
DMA_FROM, DMA_TO, DMA_COUNT, DMA_COMMAND = 0x80, 0x88, 0x90, 0x98
DMA_START, DMA_TO_RAM = 1, 2
DEVICE_BUFFER = 0x40000
IDT, IDTR, HANDLER, COUNT = 0x2000, 0x1FF0, 0x3000, 0x3800
SOURCE, TARGET, SCRATCH = 0x310000, 0x320000, 0x330000
SHARED_BAR = 2
VECTOR = 0x40
LAPIC_EOI, LAPIC_SVR = 0xFEE000B0, 0xFEE000F0
IOAPIC_SELECT, IOAPIC_DATA = 0xFEC00000, 0xFEC00010
LEVEL = 1 << 15
INTERRUPTS = 1000
STILL_SECONDS = 20
MSI_ID = 5
# Of the power management timer: 1/20 s. For an interrupt that must not come, or must have come.
TICKS = 3579545 // 20
CHANGES, EACH = 8, 50


def word(value: int) -> str:
    return struct.pack("<I", value).hex()


class Edu:
    """A machine with the device, and others; ``at(register)`` is its guest address."""

    def __init__(self, *others: str) -> None:
        self.bdf = find(EDU)
        for bdf in (self.bdf, *others):
            bind(bdf)
        self.folder = tempfile.TemporaryDirectory(dir="/dev/shm")
        self.tiny = TinyMachine(
            Path(self.folder.name),
            b"\xf4",
            DEVICE_FILEPATH_LIST=",".join([self.bdf, *others]),
            MEMORY_CONFIG="size=16M",
        )
        self.function = self.tiny.machine.passed_through()[0]
        self.base = self.function.bars[0].value
        self.program = Program()
        # Memory and bus mastering on.
        cf8_write(self.program, self.function.slot, 4, 6, 2)

    def at(self, register: int) -> int:
        return self.base + register

    def run(self) -> list[int]:
        self.tiny.load(self.program.power_off())
        outcome = self.tiny.run(60)
        expect(outcome.kind == "shutdown", f"{outcome.reason}\n{outcome.report}")
        return self.tiny.results(self.program)

    def __enter__(self) -> Edu:
        return self

    def __exit__(self, *exception: object) -> None:
        self.tiny.close()
        self.folder.cleanup()


def registers_and_dma() -> None:
    """Identity, a factorial, and 2 KiB to the device and back to another place."""
    data = bytes(range(256)) * 8  # of its 4 KiB; at the very end QEMU gives up
    with Edu() as edu:
        memory = edu.tiny.machine.memory
        memory.write(SOURCE, data)
        program = edu.program
        identity = program.read(edu.at(IDENTITY))
        program.write(edu.at(FACTORIAL), 10)
        program.raw(f"f705{word(edu.at(BUSY))}{word(1)}75f4")  # test [busy], 1; again while set
        factorial = program.read(edu.at(FACTORIAL))
        copies = ((SOURCE, DEVICE_BUFFER, 0), (DEVICE_BUFFER, TARGET, DMA_TO_RAM))
        for source, target, direction in copies:
            program.write(edu.at(DMA_FROM), source).write(edu.at(DMA_TO), target)
            program.write(edu.at(DMA_COUNT), len(data))
            program.write(edu.at(DMA_COMMAND), DMA_START | direction)
            program.raw(f"f705{word(edu.at(DMA_COMMAND))}{word(DMA_START)}75f4")
        found = edu.run()
        expect(found[identity] & 0xFF == 0xED, f"identity {found[identity]:#x}")
        expect(found[factorial] == 3628800, f"factorial {found[factorial]}")
        expect(memory.read(TARGET, len(data)) == data, "DMA brought something else")
        bar = edu.function.status()["bars"][0]  # type: ignore[index]
        expect(bar["trapped_accesses"] == 0, f"{bar}")


def interrupts(kind: str) -> None:
    """A thousand interrupts, each waited for: by the level-triggered line, or as messages."""
    with Edu() as edu:
        program = edu.program
        pin = prepare_handler(edu)
        if kind == "intx":
            program.write(IOAPIC_SELECT, 0x11 + 2 * pin).write(IOAPIC_DATA, 0)
            program.write(IOAPIC_SELECT, 0x10 + 2 * pin).write(IOAPIC_DATA, LEVEL | VECTOR)
        else:
            enable_msi(edu)
        program.raw("31db fb")
        raise_and_wait(edu, INTERRUPTS)
        edu.tiny.load(program.power_off())
        edu.tiny.machine.start()
        count = wait_for_interrupts(edu)
        expect(count == INTERRUPTS, f"{count} interrupts arrived")
        used = edu.function.interrupts.status()
        expect(used["in_use"] == kind, str(used))


def prepare_handler(edu: Edu) -> int:
    """Interrupts of VECTOR are counted and acknowledged; the IOAPIC pin of the device's line."""
    memory = edu.tiny.machine.memory
    gate = HANDLER & 0xFFFF | 8 << 16 | 0x8E00 << 32
    memory.write(IDT + 8 * VECTOR, gate.to_bytes(8, "little"))
    memory.write(IDTR, struct.pack("<HI", 8 * 256 - 1, IDT))
    # push eax; count it; acknowledge what the device says; end of interrupt; pop eax; iret
    handler = (
        f"50 ff05{word(COUNT)} a1{word(edu.at(IRQ_STATUS))} a3{word(edu.at(IRQ_ACK))}"
        f"c705{word(LAPIC_EOI)}{word(0)} 58 cf"
    )
    memory.write(HANDLER, bytes.fromhex(handler))
    edu.program.raw(f"0f011d{word(IDTR)}").write(LAPIC_SVR, 0x1FF)
    return 5 + edu.function.slot % 8


def raise_and_wait(edu: Edu, times: int) -> None:
    """``times``: raise, wait until one more was counted. ebx has the count so far."""
    edu.program.raw(
        f"b9{word(times)} 43 c705{word(edu.at(IRQ_RAISE))}{word(1)}391d{word(COUNT)} 75f8 49 75ea"
    )


def wait_for_interrupts(edu: Edu) -> int:
    """Until the guest has powered off; how many were counted."""
    machine = edu.tiny.machine

    def arrived() -> int:
        return int.from_bytes(machine.memory.read(COUNT, 4), "little")

    wait_for_end(Stall(machine, edu.function, VECTOR, arrived), STILL_SECONDS)
    outcome = outcome_of(machine)
    expect(outcome.kind == "shutdown", f"{outcome.reason}\n{outcome.report}")
    return arrived()


def enable_msi(edu: Edu, on: bool = True) -> None:
    """By the device's capability; off again, its line is what is left."""
    slot = edu.function.slot
    offset = edu.function.config_read(0x34, 1)
    while edu.function.config_read(offset, 1) != MSI_ID:
        offset = edu.function.config_read(offset + 1, 1)
    control = edu.function.config_read(offset + 2, 2)
    cf8_write(edu.program, slot, offset + 4, 0xFEE00000)
    data = offset + (12 if control & 0x80 else 8)
    cf8_write(edu.program, slot, data, VECTOR, 2)
    cf8_write(edu.program, slot, offset + 2, control | on, 2)


def peer_to_peer() -> None:
    """2 KiB from RAM into the device, and from there into another device's memory."""
    data = bytes(range(255, -1, -1)) * 8
    with Edu(find(IVSHMEM, 1)) as edu:
        machine = edu.tiny.machine
        machine.memory.write(SOURCE, data)
        peer = machine.passed_through()[1]
        bar = next(bar for bar in peer.bars if bar.index == SHARED_BAR)
        program = edu.program
        cf8_write(program, peer.slot, 4, 6, 2)
        machine.memory.write(SCRATCH, struct.pack("<QQ", bar.value, DEVICE_BUFFER))
        program.write(edu.at(DMA_FROM), SOURCE).write(edu.at(DMA_TO), DEVICE_BUFFER)
        for start in (DMA_START, DMA_START | DMA_TO_RAM):
            program.write(edu.at(DMA_COUNT), len(data)).write(edu.at(DMA_COMMAND), start)
            program.raw(f"f705{word(edu.at(DMA_COMMAND))}{word(DMA_START)}75f4")
            # movq mm0 from memory, and to the register: addresses of 64 bits are written at once.
            program.raw(f"0f6f05{word(SCRATCH)} 0f7f05{word(edu.at(DMA_TO))}")
            program.raw(f"0f6f05{word(SCRATCH + 8)} 0f7f05{word(edu.at(DMA_FROM))}")
        state = peer.status()["p2p"]
        expect(state == "on", f"{state}, BAR at {bar.value:#x}")
        edu.run()
        there = b"".join(
            machine.mmio.read(bar.value + offset, 8).to_bytes(8, "little")
            for offset in range(0, len(data), 8)
        )
        expect(there == data, "the other device's memory has something else")


def switches_between_kinds() -> None:
    """Line to messages with an interrupt pending on the masked line, and back; none too many.

    The device changes over while it holds the line, so the line must be low when its pin is
    unmasked; afterwards both kinds work as ever.
    """
    with Edu() as edu:
        program = edu.program
        pin = prepare_handler(edu)
        select, masked = 0x10 + 2 * pin, 1 << 16
        program.write(IOAPIC_SELECT, select + 1).write(IOAPIC_DATA, 0)
        program.write(IOAPIC_SELECT, select).write(IOAPIC_DATA, masked | LEVEL | VECTOR)
        program.write(edu.at(IRQ_RAISE), 1)
        program.wait_ticks(PM_TIMER_PORT, TICKS)
        enable_msi(edu)
        program.write(edu.at(IRQ_ACK), 1)
        program.write(IOAPIC_SELECT, select).write(IOAPIC_DATA, LEVEL | VECTOR)
        program.raw("fb")
        program.wait_ticks(PM_TIMER_PORT, TICKS)
        unasked = program.read(COUNT)
        program.raw("31db")
        for number in range(CHANGES):
            raise_and_wait(edu, EACH)
            enable_msi(edu, on=number % 2 == 1)
        edu.tiny.load(program.power_off())
        edu.tiny.machine.start()
        count = wait_for_interrupts(edu)
        found = edu.tiny.results(program)
        expect(found[unasked] == 0, f"{found[unasked]} interrupts that nobody asked for")
        expect(count == CHANGES * EACH, f"{count} interrupts arrived")
