"""Records of exits as arrays: their fields with units, and the TSC as time.

ts_ns      when the exit reached us, in ns since start()
vcpu       number of the vCPU
reason     KVM_EXIT_* of <linux/kvm.h>
address    port, guest physical address or MSR; 0 for exits without
size       bytes of one access; 0 for exits without
is_write   the guest wrote
count      accesses in this exit: more than one for `rep ins` and `rep outs`
data       as read or written, up to 8 bytes, little endian; the last of `count`
rip        where the guest was, as KVM tells it: at the instruction, or, after an emulated
           write to memory, behind it. 0 unless asked for
guest_ns   from KVM_RUN's call to its return: the guest, and the kernel's own work for it
           (exits that it handles itself, a halted vCPU's sleep)
vmm_ns     from its return until the exit was handled: our work. A pause is in neither
entry_tsc, exit_tsc, done_tsc
           the host's TSC at these three moments
flags      1: KVM_RUN failed, and data is the errno
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from vmm._native.kvm.tracering import tsc_now

# What the ring holds (struct vmm_trace_record of vmm/_native/kvm/tracering.pxd).
RAW = np.dtype(
    [
        ("entry_tsc", "u8"), ("exit_tsc", "u8"), ("done_tsc", "u8"), ("address", "u8"),
        ("data", "u8"), ("rip", "u8"), ("reason", "u4"), ("count", "u4"), ("vcpu", "u2"),
        ("size", "u1"), ("is_write", "?"), ("flags", "u4"),
    ]
)  # fmt: skip
FIELDS = np.dtype(
    [
        ("ts_ns", "i8"), ("vcpu", "u2"), ("reason", "u4"), ("address", "u8"), ("size", "u1"),
        ("is_write", "?"), ("count", "u4"), ("data", "u8"), ("rip", "u8"), ("guest_ns", "i8"),
        ("vmm_ns", "i8"), ("entry_tsc", "u8"), ("exit_tsc", "u8"), ("done_tsc", "u8"),
        ("flags", "u4"),
    ]
)  # fmt: skip
# A shorter distance between two looks at both clocks would make the frequency too rough.
MEASURE_NS = 20_000_000
SETTLED_NS = 1_000_000_000

Array = np.ndarray[Any, Any]


class TscClock:
    """The host's TSC as time, measured against CLOCK_MONOTONIC since ``anchor`` (see tsc_now()).

    Its frequency is some millionths right after 20 ms, which the first question waits for, and
    stays as it is once a second has passed.
    """

    def __init__(self, anchor: tuple[int, int]) -> None:
        self.anchor_tsc, self.anchor_ns = anchor
        self._hz = 0.0

    @property
    def hz(self) -> float:
        """Cycles per second."""
        if self._hz:
            return self._hz
        tsc, ns = tsc_now()
        if ns - self.anchor_ns < MEASURE_NS:
            time.sleep((MEASURE_NS - (ns - self.anchor_ns)) / 1e9)
            tsc, ns = tsc_now()
        hz = (tsc - self.anchor_tsc) / (ns - self.anchor_ns) * 1e9
        if ns - self.anchor_ns >= SETTLED_NS:
            self._hz = hz
        return hz


def in_ns(cycles: Array, hz: float) -> Array:
    """Cycles (uint64) as ns (int64); what went backwards, on a host whose TSCs differ, is < 0."""
    return np.rint(cycles.astype("i8") * (1e9 / hz)).astype("i8")


def with_times(raw: Array, anchor_tsc: int, hz: float) -> Array:
    """``raw`` (RAW) as FIELDS, in the same order."""
    out = np.empty(len(raw), FIELDS)
    for name in RAW.names or ():
        out[name] = raw[name]
    # Moments are rounded, not durations: one never reaches into the next, by not even a ns.
    entry, at, done = (
        in_ns(raw[name] - np.uint64(anchor_tsc), hz)
        for name in ("entry_tsc", "exit_tsc", "done_tsc")
    )
    out["ts_ns"] = at
    out["guest_ns"] = at - entry
    out["vmm_ns"] = done - at
    return out
