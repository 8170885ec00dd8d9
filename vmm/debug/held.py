"""What a machine is to whoever steps and stops it: vCPUs, RAM, breakpoints and run control."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from vmm.debug.breakpoints import Breakpoints
from vmm.debug.cpu import Cpu
from vmm.debug.kernelsymbols import KernelSymbols
from vmm.debug.pagewatch import PageWatch
from vmm.debug.patches import Patches
from vmm.debug.ram import Ram
from vmm.debug.runcontrol import RunControl
from vmm.debug.stopports import claim_stop_port
from vmm.run.outcome import outcome_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.debug.driver import Driver
    from vmm.machine import Machine
    from vmm.run.outcome import Outcome


class Held:
    """The parts over one machine, before its guest runs. Its owner takes the machine apart.

    ``check`` raises when there is no machine any more. ``run_driver`` None: one by the number of
    vCPUs; ``outcome_of`` tells how a guest ended.
    """

    def __init__(
        self,
        machine: Machine,
        check: Callable[[], None] = lambda: None,
        symbols: type[KernelSymbols] = KernelSymbols,
        run_driver: Driver | None = None,
        outcome_of: Callable[[Machine], Outcome] = outcome_of,
    ) -> None:
        self.machine = machine
        self._check = check
        self.patches = Patches(machine.memory)
        self.memory = Ram(machine.memory, self.patches)
        self.symbols = symbols(machine.config.kernel_path, self.memory, lambda: self.cpus[0])
        self.cpus = [
            Cpu(vcpu, self.memory, self.symbols, partial(self._still, vcpu.index))
            for vcpu in machine.vcpus
        ]
        self.pages = PageWatch(machine)
        self.stop_port = claim_stop_port(machine.pio)
        self.points = Breakpoints(self.cpus, self.patches, self.pages, self.stop_port)
        self.control = RunControl(
            machine, self.cpus, self.points, self.patches, self.symbols, run_driver, outcome_of
        )

        self.points.at_rest = self.control.at_rest

    def _still(self, index: int) -> None:
        self._check()
        self.control.still(index)

    def close(self) -> None:
        """Give back what run control has."""
        self.control.driver.close()
