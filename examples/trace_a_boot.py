"""What does a guest ask of its VMM while it boots? Every exit, by name, and what it cost.

    python examples/trace_a_boot.py [KERNEL [INITRAMFS]]

Leaves trace_a_boot.json, for ui.perfetto.dev, and trace_a_boot.png where matplotlib is installed.
"""

from __future__ import annotations

import sys

from guests import settings

import vmm

SECONDS = 300


def main(*files: str) -> int:
    """Trace one boot up to the guest's end."""
    with vmm.Guest(**settings(files)) as guest:
        with guest.trace:
            stop = guest.run(seconds=SECONDS)
        print(guest.serial.text[-400:])
        print(stop)
        print(guest.trace.summary())
        # What never came to the VMM, because the kernel did it: by KVM's own counters.
        total = guest.stats().total
        print("KVM itself:", {name: total.get(name) for name in ("exits", "halt_exits")})
        print(guest.trace.perfetto("trace_a_boot.json"), "exits are in trace_a_boot.json")
        try:
            guest.trace.plot().savefig("trace_a_boot.png")
        except vmm.HostError as error:
            print(f"no picture: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
