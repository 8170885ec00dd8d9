"""How does a kvm-unit-tests kernel end here? Twenty lines give it QEMU's test devices.

    python examples/exit_device.py KERNEL.flat [words of its command line]

Source: QEMU's isa-debug-exit (status: value * 2 + 1) and pc-testdev.
"""

from __future__ import annotations

import sys

import vmm

EXIT, ECHO, FLUSH, ECHO_BYTES, LINES, PAGES = 0xF4, 0xE0, 0xE4, 0xE8, 0x2000, 0xFF000000
PAGES_SIZE = 0x10000


class TestDevices:
    """``status`` is what the kernel ended with, None before."""

    def __init__(self, guest: vmm.Guest) -> None:
        self.status: int | None = None
        self.echo = bytearray(4)
        self.pages = bytearray(PAGES_SIZE)
        self.lines = guest.machine.vm.fd
        guest.on_port(EXIT, 4, write=self.exit)
        for port in (ECHO, ECHO_BYTES):
            guest.on_port(port, 4, self.reader(self.echo, port), self.writer(self.echo, port))
        guest.on_port(FLUSH, 4, write=lambda cpu, port, value, size: None)
        guest.on_port(LINES, 24, write=self.line)
        guest.on_mmio(
            PAGES, PAGES_SIZE, self.reader(self.pages, PAGES), self.writer(self.pages, PAGES)
        )

    def exit(self, cpu, port, value, size):
        self.status = value << 1 | 1
        return vmm.STOP

    def line(self, cpu, port, value, size):
        self.lines.irq_line(port - LINES, value != 0)

    def reader(self, data, first):
        return lambda cpu, at, size: int.from_bytes(data[at - first : at - first + size], "little")

    def writer(self, data, first):
        def write(cpu, at, value, size):
            data[at - first : at - first + size] = value.to_bytes(size, "little")

        return write


def main(kernel: str, *words: str) -> int:
    """Run it to its end; its status, as QEMU would exit."""
    with vmm.Guest(kernel=kernel, cmdline=" ".join(words), serial="tty") as guest:
        devices = TestDevices(guest)
        stop = guest.run(seconds=90)
        print(f"{stop}; status {devices.status}")
        return 1 if devices.status is None else devices.status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
