"""What does a guest do with "random" numbers that count? A virtio-rng device that counts.

    python examples/virtio_rng.py VMLINUZ INITRAMFS

In the guest: echo virtio_rng.1 >/sys/class/misc/hw_random/rng_current; od -t u8 /dev/hwrng | head
"""

from __future__ import annotations

import itertools
import struct
import sys

import vmm


class CountingRng(vmm.VirtioDevice):
    """virtio 1.2, 5.4: each buffer of the driver's is to be filled."""

    device_type = 4
    queue_sizes = (8,)

    def __init__(self) -> None:
        self.numbers = itertools.count()

    def handle(self, queue) -> None:
        for buffer in queue:
            # A driver asks for 64 bytes; one that asks for more than a page gets a page.
            for _ in range(min(buffer.writable, 4096) // 8):
                buffer.write(struct.pack("<Q", next(self.numbers)))
            buffer.done()


def main(kernel: str, initramfs: str) -> None:
    """Boot until the guest ends, its serial port on this terminal."""
    with vmm.Guest(
        kernel=kernel, initramfs=initramfs, cmdline="console=ttyS0", serial="tty",
        devices=[CountingRng],
    ) as guest:  # fmt: skip
        print(guest.run())


if __name__ == "__main__":
    main(*sys.argv[1:])
