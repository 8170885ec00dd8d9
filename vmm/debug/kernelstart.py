"""Runs a guest as far as its kernel's first instruction, where a bzImage's symbols become known."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm.guest.unpacking import unpacking_of

if TYPE_CHECKING:
    from vmm.debug.breakpoints import Breakpoints
    from vmm.debug.cpu import Cpu
    from vmm.debug.kernelsymbols import KernelSymbols
    from vmm.debug.runcontrol import RunControl
    from vmm.debug.stop import Stop


def come_to_kernel(
    kernel_path: str,
    control: RunControl,
    points: Breakpoints,
    cpu: Cpu,
    symbols: KernelSymbols,
    deadline: float | None,
) -> Stop | None:
    """Stand at the kernel's entry, unpacked and moved, its symbols known; a Stop if one came first.

    Other breakpoints act meanwhile. GuestError for a kernel that does not start as Linux does.
    """
    jumps = unpacking_of(kernel_path)
    found = _run_to(jumps.first, control, points, deadline)
    if found is None:
        found = _run_to(cpu.regs.rax + jumps.second, control, points, deadline)
    if found is None:
        symbols.find_behind(cpu.regs.rax)
    return found


def _run_to(
    address: int, control: RunControl, points: Breakpoints, deadline: float | None
) -> Stop | None:
    point = points.add(address, None, None, None, None)
    try:
        last = control.run(deadline)
    finally:
        point.remove()
    return None if last.where is point else last
