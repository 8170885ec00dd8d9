"""What does it take to be a disk? A virtio-blk device whose contents are a Python function.

    python examples/virtio_in_30_lines.py VMLINUZ INITRAMFS

Linux binds its own driver; a 1 MiB disk appears behind the others (/dev/vda, without any).
"""

from __future__ import annotations

import struct
import sys

import vmm

READ, IDENTIFY = 0, 8
OK, UNSUPPORTED = b"\0", b"\2"
READ_ONLY = 1 << 5


def content(sector: int) -> bytes:
    """The 512 bytes of a sector: its number, in words."""
    return f"this is sector {sector}\n".encode().ljust(512, b".")


class FunctionDisk(vmm.VirtioDevice):
    """virtio 1.2, 5.2: a request is a header, data, and a byte of status."""

    device_type = 2
    queue_sizes = (64,)
    features = READ_ONLY
    config = struct.pack("<Q", 2048)

    def handle(self, queue) -> None:
        for request in queue:
            kind, _, sector = struct.unpack("<IIQ", request.read(16).ljust(16, b"\xff"))
            room, status = request.writable - 1, OK
            if kind == READ:
                for number in range(sector, sector + room // 512):
                    request.write(content(number))
            elif kind == IDENTIFY:
                request.write(b"a python function".ljust(room, b"\0"))
            else:
                request.write(bytes(max(room, 0)))
                status = UNSUPPORTED
            request.write(status)
            request.done()


def main(kernel: str, initramfs: str) -> None:
    """Boot until the guest ends, its serial port on this terminal."""
    with vmm.Guest(
        kernel=kernel, initramfs=initramfs, cmdline="console=ttyS0", serial="tty",
        devices=[FunctionDisk],
    ) as guest:  # fmt: skip
        print(guest.run())


if __name__ == "__main__":
    main(*sys.argv[1:])
