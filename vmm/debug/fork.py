"""A new guest over a snapshot: a VM of its own, RAM copy-on-write, devices made anew from their
state.
"""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING

from vmm import layout
from vmm.debug.rebuild import rebuild_machine
from vmm.light.teardown import close_all

if TYPE_CHECKING:
    from vmm.debug.snapshot import Snapshot
    from vmm.debug.snapshots import Snapshots
    from vmm.host.console import HostConsole
    from vmm.host.disk import Disk
    from vmm.machine import Machine

# A clock that jumps further than this overflows in the arithmetic of kernels before 6.10
# (max_idle_ns of the TSC and of kvm-clock: 440 and 881 s).
CLOCK_STEP_MAX_NS = 300 * 10**9
# From here on the guest's watchdogs would complain of a CPU that was stuck.
PAUSE_TOLD_NS = 10**9


def remake(
    snapshot: Snapshot, console: HostConsole, serial: HostConsole
) -> tuple[list[Disk], Machine]:
    """Disks and machine of a fork."""
    disks: list[Disk] = []
    try:
        for saved in snapshot.disks:
            disks.append(saved.open())
        machine = rebuild_machine(
            snapshot.config, snapshot.ram.spawn(), snapshot.vcpus, disks, console, serial
        )
    except BaseException:
        close_all([disk.close for disk in disks])
        raise
    return disks, machine


def wake(machine: Machine, snapshots: Snapshots, snapshot: Snapshot) -> None:
    """Give the machine the snapshot's state, the time that has passed, and an id of its own."""
    ahead = snapshot.age_ns
    if ahead > CLOCK_STEP_MAX_NS:
        warnings.warn(
            f"the snapshot is {ahead // 10**9} s old: the guest's clock goes on from then; set it "
            "inside the guest (a kernel before 6.10 cannot bear such a step)",
            RuntimeWarning,
            stacklevel=4,
        )
        ahead = 0
    snapshots.settle_new(snapshot, ahead)
    if ahead > PAUSE_TOLD_NS:
        for vcpu in machine.vcpus:
            vcpu.fd.kvmclock_ctrl()
    machine.memory.write(layout.VMGENID_GPA, os.urandom(layout.VMGENID_SIZE))
    machine.ged.new_generation(snapshot.vm.pin_open(layout.GED_GSI))
