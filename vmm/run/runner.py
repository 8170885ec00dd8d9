"""Who lets a machine run for its instance, and what of it the event loop hears of."""

from __future__ import annotations

import os

from vmm import layout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.machine import Machine
    from vmm.run.eventloop import EventLoop


class Runner:
    """Lets it run, and nothing else. A debugger takes its place. All on the control thread.

    ``killed``: the guest is to be ended, by somebody's word who may say so.
    """

    killed = False

    def left_fd(self, machine: Machine) -> int:
        """Becomes readable when the guest has ended, or is to be ended."""
        return machine.outcome_fd

    def start(self, machine: Machine, first: Callable[[], None]) -> None:
        """Let the guest run, once ``first`` is done."""
        # Nobody looks at single accesses here, as debuggers and scripts do: the address of each
        # access to configuration space comes together with the access.
        machine.vm.keep_writes(machine.pio, layout.PCI_CONFIG_PORT, layout.PCI_CONFIG_SIZE // 2)
        machine.start(first)

    def let_go(self) -> None:
        """Have nothing to do with the machine any more."""

    def status(self) -> dict[str, object] | None:
        """Facts for `status` about a debugger, if there is one."""
        return None

    def close(self) -> None:
        """Give everything back."""


def watch_devices(
    machine: Machine,
    loop: EventLoop,
    wanted: Callable[[str], None],
    failed: Callable[[str], None],
) -> list[int]:
    """Call one of these with a device's address when it says so; the descriptors that tell it."""
    fds: list[int] = []

    def watch(fd: int, bdf: str, tell: Callable[[str], None]) -> None:
        def told() -> None:
            os.eventfd_read(fd)
            tell(bdf)

        if fd >= 0:
            loop.add(fd, told)
            fds.append(fd)

    for function in machine.passed_through():
        watch(function.signals.request_fd, function.bdf, wanted)
        watch(function.signals.error_fd, function.bdf, failed)
    return fds
