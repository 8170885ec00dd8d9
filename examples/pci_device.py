"""Which registers does a driver touch while it binds? A PCI device with MSI-X that tells.

    python examples/pci_device.py VMLINUZ INITRAMFS

It has the identity of VMware's communication interface: load Linux's own driver, vmw_vmci, in the
guest, and see what it does; then look at /proc/interrupts.
"""

from __future__ import annotations

import sys

import vmm

STATUS, CONTROL, ICR, IMR = 0x00, 0x04, 0x08, 0x0C
DATA_OUT, DATA_IN, CAPS, RESULT = 0x10, 0x14, 0x18, 0x1C
NAMES = {
    STATUS: "STATUS", CONTROL: "CONTROL", ICR: "ICR", IMR: "IMR", DATA_OUT: "DATA_OUT",
    DATA_IN: "DATA_IN", CAPS: "CAPS", RESULT: "RESULT",
}  # fmt: skip
DATAGRAMS = 1 << 2
INTERRUPTS_ON = 1 << 1


class Vmci(vmm.PciDevice):
    """Just enough for the driver to be content (Linux: drivers/misc/vmw_vmci/vmci_guest.c)."""

    vendor_id, device_id, class_code = 0x15AD, 0x0740, 0x088000
    bars = {0: vmm.Bar(64, io=True)}
    msix_vectors = 2

    def __init__(self) -> None:
        self.trail: list[str] = []

    def tell(self, what: str) -> None:
        # Data goes byte by byte, thousands of them.
        if what not in self.trail[-1:]:
            self.trail.append(what)

    def read(self, bar: int, offset: int, size: int) -> int:
        self.tell(f"read {NAMES.get(offset, hex(offset))}")
        # No datagram is ever waiting: the port of incoming data reads ones.
        return {CAPS: DATAGRAMS, RESULT: 1, DATA_IN: -1}.get(offset, 0)

    def write(self, bar: int, offset: int, value: int, size: int) -> None:
        self.tell(f"write {NAMES.get(offset, hex(offset))} {value:#x}")
        if offset == CONTROL and value & INTERRUPTS_ON:
            self.msix(0)


def main(kernel: str, initramfs: str) -> None:
    """Boot until the guest ends, then what its driver did."""
    device = Vmci()
    with vmm.Guest(
        kernel=kernel, initramfs=initramfs, cmdline="console=ttyS0", serial="tty", devices=[device]
    ) as guest:
        print(guest.run())
    print("\n".join(device.trail))


if __name__ == "__main__":
    main(*sys.argv[1:])
