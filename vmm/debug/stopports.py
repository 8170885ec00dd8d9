"""A port that the guest does not use, for breakpoints that are port instructions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm._native.ports.stopport import StopPort

if TYPE_CHECKING:
    from vmm._native.kvm.bus import Bus

# The highest first: test devices of kernels and emulators lie at the lower ones.
STOP_PORTS = range(0xFE, 0xDF, -1)


def claim_stop_port(pio: Bus) -> int:
    """Take the first free one; before the guest runs. ValueError when there is none."""
    target = StopPort()
    for port in STOP_PORTS:
        try:
            pio.attach(port, 1, target, "breakpoint port")
        except ValueError:
            continue  # it is taken
        return port
    raise ValueError("no port is free for breakpoints")
