"""A PCI and a virtio device that are Python classes, and how a tiny guest comes to them."""

from __future__ import annotations

import threading

import vmm
from tests.support.elf_builder import LOAD_GPA
from tests.support.guest_asm import Program
from tests.support.speed import patience

SECONDS = patience(20)
SIZE = 8


class Registers(vmm.PciDevice):
    """A word that can be written, its square, and an interrupt for each write."""

    vendor_id, device_id, class_code = 0x1234, 0xBEEF, 0x058000
    subsystem = (0xAAAA, 0x5555)
    bars = {0: 4096, 1: vmm.Bar(16, io=True), 2: vmm.Bar(1 << 20, wide=True, prefetchable=True)}
    msix_vectors = 3

    def __init__(self) -> None:
        self.word = 0
        self.seen: list[tuple[int, int, int, int]] = []
        self.resets = 0

    def read(self, bar, offset, size):
        return self.word**2 & (1 << 8 * size) - 1

    def write(self, bar, offset, value, size):
        assert threading.current_thread() is threading.main_thread()
        assert self.cpu.regs.rip
        self.seen.append((bar, offset, value, size))
        self.word = value
        self.msix(1)
        if value == 0x57:
            return vmm.STOP
        if value == 0x58:
            raise LookupError("not this one")
        return None

    def reset(self):
        self.resets += 1


class Upper(vmm.VirtioDevice):
    """Answers each request with its text in capitals."""

    device_type = 42
    queue_sizes = (SIZE, SIZE)
    config = b"config"
    low_bar = True

    def __init__(self) -> None:
        self.served: list[tuple[int, bytes]] = []
        self.resets = 0
        self.failing = False
        self.answer = None

    def handle(self, queue):
        assert threading.current_thread() is threading.main_thread()
        if self.failing:
            raise OSError("out of letters")
        for chain in queue:
            text = chain.read()
            self.served.append((queue.index, text))
            chain.write(text.upper())
            chain.done()
        return self.answer

    def reset(self):
        self.resets += 1


def pci_slot(guest, device) -> int:
    return guest.machine.pci.functions.index(device._function)


def bar_of(device, index: int = 0) -> int:
    return next(b.value for b in device._function.bars if b.index == index)


def run(guest, program: Program) -> vmm.Stop:
    guest.memory.write(LOAD_GPA, program.power_off())
    return guest.run(seconds=SECONDS)
