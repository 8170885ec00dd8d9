"""A machine for a state that is there already: no kernel is loaded, no table written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm.machine import Machine, attach_pci, attach_platform, attach_virtio, create_vm
from vmm.x86 import cpuid

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm._native.kvm.vcpustate import VcpuState
    from vmm._native.memory.guestmem import GuestMemory
    from vmm.host.console import HostConsole
    from vmm.host.disk import Disk
    from vmm.settings.config import Config


def rebuild_machine(
    config: Config,
    memory: GuestMemory,
    vcpus: Sequence[VcpuState],
    disks: Sequence[Disk],
    console: HostConsole,
    serial: HostConsole,
) -> Machine:
    """The parts of a machine over ``memory``, which is its own from here on; CPUID is set.

    What the vCPUs, KVM and the devices hold is the caller's to set. Raises VmmError.
    """
    machine = Machine(config)
    try:
        create_vm(machine, cpuid.flat_topology(config.cpu_count).apic_ids(), memory)
        attach_platform(machine, serial)
        attach_pci(machine)
        attach_virtio(machine, disks, console)
        for vcpu, state in zip(machine.vcpus, vcpus, strict=True):
            state.set_cpuid(vcpu.fd)
    except BaseException:
        machine.close()
        raise
    return machine
