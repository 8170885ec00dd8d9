"""Brings an exit that a script answers to the thread that drives the guest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from vmm._native.kvm import bus
from vmm.debug.stop import HOOK, STOP

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmm.debug.cpu import Cpu
    from vmm.debug.runcontrol import RunControl

FAILED: Final = object()


class Caller:
    """Runs functions of scripts for one guest's vCPUs; what they raise ends the run.

    Any thread may call; the function runs on the thread that drives the guest, with the vCPU that
    waits for it standing still.
    """

    def __init__(self) -> None:
        # A machine is built before there is anybody who drives it.
        self._control: RunControl | None = None
        self._cpus: Sequence[Cpu] = ()

    def connect(self, control: RunControl, cpus: Sequence[Cpu]) -> None:
        """From now on a guest can run."""
        self._control = control
        self._cpus = cpus

    def run(self, vcpu: int, function: Callable[..., Any], *arguments: Any) -> Any:
        """What ``function`` gives back; FAILED when it raised. ``vcpu`` is -1 for none."""
        control = self._control
        try:
            if control is None or vcpu < 0:
                return function(*arguments)
            return control.serve(vcpu, function, *arguments)
        except BaseException as error:
            if control is None:
                raise
            control.fail(error)
            return FAILED

    def cpu(self, vcpu: int) -> Cpu | None:
        """The vCPU as a script sees it; None before the guest is whole."""
        return self._cpus[vcpu] if self._cpus else None

    def later(self, function: Callable[[], Any]) -> None:
        """Run it on the thread that drives the guest, behind what waits there already."""
        if self._control is not None:
            self._control.driver.later(function)

    def stop(self, vcpu: int, where: object) -> int:
        """Let run() return because of ``where``; the outcome that makes the vCPU stand still."""
        if self._control is not None:
            self._control.ask(HOOK, repr(where), where, max(vcpu, 0))
        return bus.STOP if vcpu >= 0 else bus.CONTINUE

    def ask(
        self,
        vcpu: int,
        where: object,
        check: Callable[[Any], Any],
        function: Callable[..., Any],
        *arguments: Any,
    ) -> tuple[Any, int]:
        """What ``function(cpu, ...)`` says of an access, and the outcome for its vCPU.

        ``check`` looks at what it gave back, on the same thread, and may raise. FAILED and STOP
        come as they are, with the outcome that makes the vCPU stand still.
        """
        found = self.run(vcpu, self._checked, check, function, self.cpu(max(vcpu, 0)), arguments)
        if found is FAILED:
            return found, bus.STOP if vcpu >= 0 else bus.CONTINUE
        return found, self.stop(vcpu, where) if found is STOP else bus.CONTINUE

    def _checked(
        self, check: Callable[[Any], Any], function: Callable[..., Any], cpu: Cpu | None, more: Any
    ) -> Any:
        found = function(cpu, *more)
        return STOP if found is STOP else check(found)


def fitting(value: object, size: int, whose: object) -> int:
    """A value of ``size`` bytes, negative ones as two's complement; TypeError or ValueError."""
    if not isinstance(value, int):
        raise TypeError(f"{whose}: it gave {value!r}, an integer of {size} bytes is needed")
    if not -(1 << 8 * size - 1) <= value < 1 << 8 * size:
        raise ValueError(f"{whose}: it gave {value:#x}, which does not fit into {size} bytes")
    return value & (1 << 8 * size) - 1
