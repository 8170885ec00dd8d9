"""Why a guest stopped, read from the vCPU that left first."""

from __future__ import annotations

from vmm._native.kvm import bus

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmm.machine import Machine
    from vmm.vcpu import Vcpu

# The name of KVM_EXIT_SHUTDOWN, which is how KVM reports a triple fault.
TRIPLE_FAULT_EXIT = "shutdown"


class Outcome:
    """Why the guest stopped: ``kind`` is reset, shutdown, panic, crash or error.

    ``report`` holds registers and last exits, where something went wrong.
    """

    def __init__(self, kind: str, reason: str, report: str = "") -> None:
        self.kind = kind
        self.reason = reason
        self.report = report


def outcome_of(machine: Machine) -> Outcome:
    """Stop the vCPUs that still run, and tell why the first one left. Control thread."""
    ended = [vcpu for vcpu in machine.vcpus if not vcpu.loop.running]
    machine.stop_vcpus()
    for vcpu in ended:
        kind = vcpu.loop.outcome
        if kind == bus.RESET:
            return _reset(vcpu, machine)
        if kind == bus.SHUTDOWN and machine.pvpanic.panicked:
            return Outcome("panic", "the guest's kernel panicked", vcpu.report(machine.memory))
        if kind == bus.SHUTDOWN:
            return Outcome("shutdown", "the guest powered itself off")
        if kind == bus.CRASH:
            return Outcome("crash", vcpu.loop.stop_detail(), vcpu.report(machine.memory))
        if kind == bus.ERROR:
            return Outcome("error", vcpu.loop.stop_detail(), vcpu.report(machine.memory))
    return Outcome("error", "the vCPUs stopped without a reason")


def _reset(vcpu: Vcpu, machine: Machine) -> Outcome:
    if vcpu.loop.stop_detail() == TRIPLE_FAULT_EXIT:
        return Outcome("reset", "the guest triple-faulted", vcpu.report(machine.memory))
    _, port, _, _, value = vcpu.loop.last_exits()[-1]
    return Outcome("reset", f"the guest reset the machine ({value:#x} to port {port:#x})")
