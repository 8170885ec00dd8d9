"""What a service's machine is to a debugger: vCPUs, RAM, breakpoints and run control."""

from __future__ import annotations

from vmm._native.kvm import bus
from vmm.debug.breakpoints import Breakpoints
from vmm.debug.cpu import Cpu
from vmm.debug.driver import Several
from vmm.debug.kernelsymbols import KernelSymbols
from vmm.debug.pagewatch import PageWatch
from vmm.debug.patches import Patches
from vmm.debug.ram import Ram
from vmm.debug.runcontrol import RunControl
from vmm.debug.stopports import claim_stop_port
from vmm.guest.symbols import Symbols
from vmm.machine import Machine
from vmm.run.outcome import Outcome

KINDS = {bus.RESET: "reset", bus.SHUTDOWN: "shutdown", bus.ERROR: "error"}


class Held:
    """A machine whose vCPUs run on threads of their own and are let go by one thread of ours.

    Its owner learns from it that the guest has ended, and takes it apart.
    """

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        patches = Patches(machine.memory)
        self.memory = Ram(machine.memory, patches)
        symbols = _Nameless(machine.config.kernel_path, self.memory, lambda: self.cpus[0])
        self.cpus = [Cpu(vcpu, self.memory, symbols, self._still) for vcpu in machine.vcpus]
        port = claim_stop_port(machine.pio)
        self.points = Breakpoints(self.cpus, patches, PageWatch(machine), port)
        self.control = RunControl(
            machine, self.cpus, self.points, patches, symbols, Several(machine), _outcome
        )

    def _still(self) -> None:
        self.control.still()

    def close(self) -> None:
        """Give back what run control has."""
        self.control.driver.close()


class _Nameless(KernelSymbols):
    """gdb has names of its own: nothing is read out of the kernel for a stop."""

    def get(self) -> Symbols | None:
        """None."""
        return None


def _outcome(machine: Machine) -> Outcome:
    """In few words: the others are stopped, and the report is made, by the machine's owner."""
    for vcpu in machine.vcpus:
        kind = vcpu.loop.outcome
        if kind == bus.SHUTDOWN and machine.pvpanic.panicked:
            return Outcome("panic", "the guest's kernel panicked")
        if kind != bus.CONTINUE:
            return Outcome(KINDS.get(kind, "crash"), vcpu.loop.stop_detail())
    return Outcome("error", "the vCPUs stopped without a reason")
