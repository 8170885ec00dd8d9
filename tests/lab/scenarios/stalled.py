"""A guest that waits for an interrupt which does not come: where on its way it is.

The way: the device, the host's interrupt, VFIO, an eventfd, KVM's line or message, the local APIC,
the processor. It is followed from the guest's end; at each step what should have happened by itself
is done by hand, and where the guest goes on, there the interrupt had been lost.
"""

from __future__ import annotations

import os
import select
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from devices.vfio.passthrough import PassthroughFunction
from tests.lab.rig.flaw import LabFlaw
from tests.support.speed import patience
from vmm.machine import Machine

IRR, ISR = 0x200, 0x100
RFLAGS_IF = 1 << 9
STEP_SECONDS = 3.0


class Stall(NamedTuple):
    """What is known of it; ``count`` tells how many interrupts arrived by now."""

    machine: Machine
    function: PassthroughFunction
    vector: int
    count: Callable[[], int]

    def goes_on(self) -> bool:
        before, deadline = self.count(), time.monotonic() + patience(STEP_SECONDS)
        while time.monotonic() < deadline:
            if self.count() != before:
                return True
            time.sleep(0.05)
        return False

    def requested(self) -> tuple[bool, bool, bool]:
        """The vector (waits in the local APIC, is in service); interrupts are on."""
        vcpu = self.machine.vcpus[0]
        if not vcpu.loop.pause():
            raise AssertionError("the vCPU does not leave the guest")
        try:
            page, regs = vcpu.fd.get_lapic(), vcpu.fd.get_regs()
        finally:
            vcpu.loop.resume()
        word, bit = self.vector // 32 * 16, self.vector % 32
        irr, isr = (int.from_bytes(page[at + word :][:4], "little") >> bit & 1 for at in (IRR, ISR))
        return bool(irr), bool(isr), bool(regs["rflags"] & RFLAGS_IF)

    def host(self) -> str:
        """The device's registers as the host sees them, and the host's own interrupts."""
        bdf = self.function.bdf
        config = Path(f"/sys/bus/pci/devices/{bdf}/config").read_bytes()[:8]
        lines = [
            line.strip()
            for line in Path("/proc/interrupts").read_text().splitlines()
            if bdf in line or "vfio" in line
        ]
        told = subprocess.run(["dmesg"], capture_output=True, text=True).stdout.splitlines()[-8:]
        command, status = config[4:6][::-1].hex(), config[6:8][::-1].hex()
        return "\n".join([f"command {command} status {status}", *lines, *told])

    def explain(self) -> str:
        """Where the interrupt was lost, and what was seen on the way.

        LabFlaw when KVM had it in the local APIC, the guest took interrupts, and the emulated
        processor did not deliver it: pausing the guest makes KVM ask for it once more.
        """
        told = [f"{self.count()} interrupts arrived, then none", self.host()]
        waits, serves, takes = self.requested()
        told.append(f"local APIC: waits {waits}, in service {serves}; guest takes any: {takes}")
        if self.goes_on():
            if waits and takes and not serves:
                raise LabFlaw("its processor did not deliver an interrupt that KVM had pending")
            return "\n".join([*told, "it went on when it was paused"])
        for step, act in self._steps():
            act()
            if self.goes_on():
                return "\n".join([*told, f"it went on by {step}"])
        report = self.machine.vcpus[0].snapshot(self.machine.memory)
        return "\n".join([*told, "nothing helped", self.host(), report])

    def _steps(self) -> list[tuple[str, Callable[[], None]]]:
        line = self.function.interrupts._line
        if self.function.interrupts.kind != "intx" or line is None:
            return []
        return [
            ("unmasking at VFIO", lambda: os.eventfd_write(line.resample_fd, 1)),
            ("raising KVM's line", lambda: os.eventfd_write(line.fd, 1)),
        ]


def wait_for_end(stall: Stall, still_seconds: float) -> None:
    """Until the guest ends; AssertionError or LabFlaw when no interrupt comes for so long."""
    machine = stall.machine
    seen, moved = stall.count(), time.monotonic()
    while not _ended(machine):
        if (now := stall.count()) != seen:
            seen, moved = now, time.monotonic()
        elif time.monotonic() - moved > patience(still_seconds):
            try:
                raise AssertionError(stall.explain())
            finally:
                machine.stop_vcpus()


def _ended(machine: Machine) -> bool:
    poll = select.poll()
    poll.register(machine.outcome_fd, select.POLLIN)
    return bool(poll.poll(200))
