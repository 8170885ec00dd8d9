"""The part of a Guest that puts functions behind ports, addresses and registers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from vmm.debug.devices import Devices, GuestDevice
    from vmm.debug.hooks import Hook, Hooks
    from vmm.debug.msrhooks import MsrHook
    from vmm.debug.runcontrol import RunControl
    from vmm.machine import Machine

    Function = Callable[..., Any]


class Hooking:
    """on_port(), on_mmio(), on_msr() and devices by name.

    The thread that drives the guest, from hooks as well.

    Functions run on the thread that called run(), with that vCPU standing still, its ``cpu`` first:
    ``read(cpu, address, size) -> int`` and ``write(cpu, address, value, size)``. Each may return
    vmm.STOP, and run() returns with a Stop "hook", the access done. What one raises comes out of
    run(), the guest intact; a read that failed gives ones. Each call returns the handle, which is
    a decorator as well.
    """

    machine: Machine
    _hooks: Hooks
    _control: RunControl

    def _open(self) -> None:
        raise NotImplementedError

    def on_port(
        self,
        first: int,
        count: int = 1,
        read: Function | None = None,
        write: Function | None = None,
        mode: str = "replace",
        *,
        condition: str | None = None,
    ) -> Hook:
        """Python behind ``count`` ports from ``first`` on.

        With "replace" a device that is there is put aside until remove(); without ``read`` ports
        read ones, without ``write`` what is written is lost. With "watch" it goes on working, and
        both functions are called as ``(cpu, address, value, size)``: a read behind its answer, a
        write before it. An integer that they return counts in place of the value.

        ``condition`` is an expression of registers, ``address``, ``value`` (0 of a read) and
        ``size``, looked at by native code: accesses for which it does not hold are the device's, or
        nobody's. Where it cannot be looked at (a division by zero) the function is called.
        """
        self._open()
        return self._hooks.on_port(first, count, read, write, mode, condition)

    def on_mmio(
        self,
        gpa: int,
        size: int,
        read: Function | None = None,
        write: Function | None = None,
        mode: str = "replace",
        *,
        condition: str | None = None,
    ) -> Hook:
        """Python behind ``size`` bytes of guest physical addresses, as on_port().

        RAM and what the kernel itself answers (interrupt controllers, doorbells of virtio queues)
        make no exit; the former two raise ValueError.
        """
        self._open()
        return self._hooks.on_mmio(gpa, size, read, write, mode, condition)

    def on_msr(
        self, index: int, read: Function | None = None, write: Function | None = None
    ) -> MsrHook:
        """Python behind a model-specific register; ``address`` is its index, ``size`` 8.

        A function may return None (it happens as without the hook), an integer (that value is read
        or written instead), vmm.GP (the guest gets a general protection fault) or, of a write,
        vmm.DONE (KVM hears nothing of it).
        """
        self._open()
        return self._hooks.on_msr(index, read, write)

    @property
    def devices(self) -> Devices:
        """All devices of the guest, by the names that the trace uses. Any thread."""
        from vmm.debug.devices import Devices

        self._open()
        return Devices(self.machine, self._hooks, self._control)

    def device(self, name: str) -> GuestDevice:
        """One of them: "disk0", "console", "rng", "COM1" ...; KeyError names those that there are.

        It can be watched, replaced, and asked for its state and where the guest sees it.
        """
        return self.devices[name]
