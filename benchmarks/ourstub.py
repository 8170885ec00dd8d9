"""`python -m benchmarks.ourstub KERNEL SOCKET`: a guest of ours that waits for a debugger."""

from __future__ import annotations

import sys

from vmm.debug.guest import Guest


def main(kernel: str, socket: str) -> None:
    with Guest(kernel=kernel, memory="32M") as guest:
        guest.gdb(socket, thread=False).serve()


if __name__ == "__main__":
    main(*sys.argv[1:])
