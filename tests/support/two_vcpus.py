"""Two vCPUs that work on the same thing at once: loops for the boot vCPU and for a second one."""

from __future__ import annotations

import struct

import vmm
from tests.support.guest_asm import Program
from tests.support.tiny_machine import TinyMachine
from vmm.layout import PM_TIMER_PORT

LAPIC_ICR = 0xFEE00300
INIT_ALL_BUT_SELF, STARTUP_ALL_BUT_SELF = 0xC4500, 0xC4600
AP_CODE = 0x8000
CONFIG_ADDRESS, CONFIG_DATA = 0xCF8, 0xCFC
CONFIG_ENABLE = 1 << 31
COMMON_STATUS = 0x14
QUEUE_GPA = 0x300000


def loop(program: Program, body: Program, count: int) -> Program:
    """Runs ``body`` (an empty Program's accesses) so many times; uses ebp."""
    program.code += b"\xbd" + struct.pack("<I", count)  # mov ebp, count
    inner = bytes(body.code[6:])  # without the prologue of a program
    program.code += inner + b"\x4d\x0f\x85" + struct.pack("<i", -(len(inner) + 7))  # dec; jnz
    return program


def wake_others(program: Program) -> Program:
    """All other vCPUs start at AP_CODE, in real mode."""
    program.write(LAPIC_ICR, INIT_ALL_BUT_SELF)
    program.wait_ticks(PM_TIMER_PORT, 3580)
    return program.write(LAPIC_ICR, STARTUP_ALL_BUT_SELF | AP_CODE >> 12)


def both_at(guest: vmm.Guest, address: int) -> None:
    """Both vCPUs go on at ``address``, the second one in protected mode as well: it was woken."""
    first, second = guest.cpus
    kept = ("cr0", "cr3", "cr4", "efer", "cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt", "gdt")
    second.sregs.update({name: first.sregs[name] for name in kept})
    for cpu in guest.cpus:
        cpu.regs.rip = address


class RealMode:
    """Port writes in real mode, repeated for ever."""

    def __init__(self) -> None:
        self.code = bytearray(b"\xfa")

    def out(self, port: int, value: int, size: int) -> RealMode:
        self.code += b"\xba" + struct.pack("<H", port) + b"\x66\xb8" + struct.pack("<I", value)
        self.code += {1: b"\xee", 2: b"\xef", 4: b"\x66\xef"}[size]
        return self

    def config(self, slot: int, register: int, value: int, size: int = 4) -> RealMode:
        """A write of configuration space by mechanism 1."""
        self.out(CONFIG_ADDRESS, CONFIG_ENABLE | slot << 11 | register & ~3, 4)
        return self.out(CONFIG_DATA + (register & 3), value, size)

    def for_ever(self) -> bytes:
        return bytes(self.code + b"\xe9" + struct.pack("<h", 1 - len(self.code) - 3))


def activate(program: Program, bar: int, queues: int = 1, gpa: int = QUEUE_GPA) -> Program:
    """As a driver does: features, queues, DRIVER_OK."""
    program.write(bar + COMMON_STATUS, 1, 1).write(bar + COMMON_STATUS, 3, 1)
    program.write(bar + 0x08, 1).write(bar + 0x0C, 1)  # VERSION_1
    program.write(bar + COMMON_STATUS, 0xB, 1)
    for queue in range(queues):
        base = gpa + 0x4000 * queue
        program.write(bar + 0x16, queue, 2)
        for register, address in ((0x20, base), (0x28, base + 0x1000), (0x30, base + 0x2000)):
            program.write(bar + register, address).write(bar + register + 4, 0)
        program.write(bar + 0x1C, 1, 2)
    return program.write(bar + COMMON_STATUS, 0xF, 1)


def race(tiny: TinyMachine, first: Program, second: bytes, rounds: int, seconds: float = 60):
    """Let the boot vCPU run ``first`` so often while another one loops; the outcome."""
    program = loop(wake_others(Program()), first, rounds)
    tiny.load(program.power_off())
    tiny.machine.memory.write(AP_CODE, second)
    return tiny.run(seconds)
