"""Functions of a script behind ports and addresses: the handles, and which ranges are possible."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from vmm import layout
from vmm._native.kvm import bus
from vmm._native.kvm.hooktarget import HookTarget
from vmm.debug.caller import FAILED, fitting
from vmm.debug.condition import Expression
from vmm.debug.handle import Handle
from vmm.debug.msrhooks import MsrHooks
from vmm.debug.signatures import (
    READ_ARGUMENTS,
    WRITE_ARGUMENTS,
    check_function,
    check_functions,
    is_read,
)
from vmm.debug.stop import STOP

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmm.debug.caller import Caller
    from vmm.debug.cpu import Cpu
    from vmm.debug.msrhooks import MsrHook
    from vmm.machine import Machine

    Function = Callable[..., Any]

REPLACE: Final = "replace"
WATCH: Final = "watch"
MODES = (REPLACE, WATCH)
PORTS = 0x10000
PAGE = layout.PAGE_SIZE
# What answers in the kernel, without an exit: (first, count, what).
KERNEL_PORTS = (
    (0x20, 2, "the kernel's 8259"),
    (0xA0, 2, "the kernel's 8259"),
    (0x4D0, 2, "the kernel's 8259"),
)
KERNEL_MMIO = (
    (layout.LAPIC_GPA, PAGE, "the kernel's local APIC"),
    (layout.IOAPIC_GPA, PAGE, "the kernel's IOAPIC"),
    (layout.TSS_GPA, 3 * PAGE, "KVM's own page"),
    (layout.IDENTITY_MAP_GPA, PAGE, "KVM's own page"),
)


class Hook(Handle):
    """A function of a script behind ``count`` ports or bytes from ``first`` on.

    ``kind`` is port, mmio or msr, ``hits`` counts the calls, ``passed`` the accesses for which its
    ``condition`` did not hold, and which came to whatever is behind. While not ``enabled`` the
    device behind answers, if there is one. As a decorator it takes a function by its
    arguments: three are ``read(cpu, address, size)``, four ``write(cpu, address, value, size)``;
    with mode="watch" both have four, and a decorated function gets both.
    """

    def __init__(
        self, kind: str, first: int, count: int, mode: str, caller: Caller,
        remove: Callable[[Hook], None],
    ) -> None:  # fmt: skip
        super().__init__()
        self.kind = kind
        self.first = first
        self.count = count
        self.mode = mode
        self.condition: Expression | None = None
        self.read: Function | None = None
        self.write: Function | None = None
        self._caller = caller
        self._remove = remove
        self.target: HookTarget

    @property
    def hits(self) -> int:
        """How often the guest came here."""
        return self.target.hits

    @property
    def passed(self) -> int:
        """How often its condition did not hold."""
        return self.target.passed

    def __call__(self, function: Function) -> Function:
        """As a decorator."""
        if self.mode == WATCH:
            check_function(function, WRITE_ARGUMENTS, "a watching hook")
            self.read = self.write = function
        elif is_read(function):
            self.read = function
        else:
            self.write = function
        return function

    def _switched(self) -> None:
        self.target.enabled = self._enabled

    def _gone(self) -> None:
        # The device behind answers again.
        self._remove(self)

    def access(
        self, vcpu: int, address: int, value: int, size: int, is_write: bool
    ) -> tuple[int, int]:
        """One access of the guest's, on its vCPU's thread: (value, outcome)."""
        function = self.write if is_write else self.read
        if function is None:
            return value, bus.CONTINUE

        def check(found: Any) -> int:
            if found is None and (is_write or self.mode == WATCH):
                return value
            if is_write and self.mode == REPLACE:
                raise TypeError(f"{self!r}: a write gave {found!r}: None or vmm.STOP is possible")
            return fitting(found, size, self)

        with_value = is_write or self.mode == WATCH
        more = (address, value, size) if with_value else (address, size)
        found, outcome = self._caller.ask(vcpu, self, check, function, *more)
        return value if found is FAILED or found is STOP else found, outcome

    def __repr__(self) -> str:
        last = f"..{self.first + self.count - 1:#x}" if self.count > 1 else ""
        mode = " watch" if self.mode == WATCH else ""
        hits = f"{self.hits} hits" + (f", {self.passed} passed" if self.passed else "")
        return f"<{self.kind}{mode} hook at {self.first:#x}{last}, {hits}{self._state}>"


class Hooks:
    """All hooks of a guest. The thread that drives it, from hooks as well."""

    def __init__(
        self, machine: Machine, cpus: Sequence[Cpu], caller: Caller, stop_port: int
    ) -> None:
        self._machine = machine
        self._cpus = cpus
        self._caller = caller
        self._stop_port = stop_port
        self._msrs = MsrHooks(machine.vm.fd, cpus, caller)

    def on_port(
        self, first: int, count: int, read: Function | None, write: Function | None, mode: str,
        condition: str | None = None,
    ) -> Hook:  # fmt: skip
        """See Guest.on_port()."""
        _check_range("port", first, count, PORTS)
        hook = self._make("port", first, count, read, write, mode, condition)
        self._check_kernel(hook, KERNEL_PORTS)
        spared = self._stop_port if first <= self._stop_port < first + count else -1
        if spared >= 0 and (mode == REPLACE or count == 1):
            raise ValueError(
                f"{_place(hook)} overlaps port {spared:#x} of this guest's breakpoints"
            )
        return self._cover(hook, spared)

    def on_mmio(
        self, gpa: int, size: int, read: Function | None, write: Function | None, mode: str,
        condition: str | None = None,
    ) -> Hook:  # fmt: skip
        """See Guest.on_mmio()."""
        _check_range("mmio", gpa, size, 1 << self._machine.phys_bits)
        hook = self._make("mmio", gpa, size, read, write, mode, condition)
        for start, length in self._machine.memory.regions:
            if gpa < start + length and start < gpa + size:
                raise ValueError(
                    f"{_place(hook)} overlaps guest RAM [{start:#x}, {start + length:#x}), which "
                    "the guest reaches without an exit; watch() a few bytes of RAM"
                )
        self._check_kernel(hook, KERNEL_MMIO)
        return self._cover(hook, -1)

    def on_msr(self, index: int, read: Function | None, write: Function | None) -> MsrHook:
        """See Guest.on_msr()."""
        check_functions(read, write, READ_ARGUMENTS)
        return self._msrs.add(index, read, write)

    def _make(
        self, kind: str, first: int, count: int, read: Function | None, write: Function | None,
        mode: str, condition: str | None,
    ) -> Hook:  # fmt: skip
        if mode not in MODES:
            raise ValueError(f"mode={mode!r}: {' or '.join(map(repr, MODES))}")
        check_functions(read, write, WRITE_ARGUMENTS if mode == WATCH else READ_ARGUMENTS)
        hook = Hook(kind, first, count, mode, self._caller, self._uncover)
        hook.read, hook.write = read, write
        if condition is not None:
            if not isinstance(condition, str):
                raise ValueError(f"condition={condition!r}: text; a function may look for itself")
            hook.condition = Expression(condition, access=True)
        return hook

    def _cover(self, hook: Hook, spared: int) -> Hook:
        space = self._bus(hook)
        hook.target = HookTarget(hook.access, hook.first, space, hook.mode == WATCH, spared)
        if hook.condition is not None:
            hook.target.set_condition(hook.condition.native, [cpu.vcpu.fd for cpu in self._cpus])
        space.cover(hook.first, hook.count, hook.target, f"{hook.mode} hook")
        return hook

    def _uncover(self, hook: Hook) -> None:
        self._bus(hook).uncover(hook.first)

    def _bus(self, hook: Hook) -> bus.Bus:
        return self._machine.pio if hook.kind == "port" else self._machine.mmio

    def _check_kernel(self, hook: Hook, ranges: tuple[tuple[int, int, str], ...]) -> None:
        end = hook.first + hook.count
        for start, length, what in ranges:
            inside = start <= hook.first and end <= start + length
            overlaps = hook.first < start + length and start < end
            if inside or (overlaps and hook.mode == REPLACE):
                raise ValueError(
                    f"{_place(hook)} overlaps {what} at [{start:#x}, {start + length:#x}), which "
                    "answers without an exit"
                )


def _place(hook: Hook) -> str:
    return f"a {hook.kind} hook at [{hook.first:#x}, {hook.first + hook.count:#x})"


def _check_range(kind: str, first: object, count: object, end: int) -> None:
    if not isinstance(first, int) or not isinstance(count, int):
        raise ValueError(f"{kind} {first!r}, {count!r}: two integers are needed")
    if not 0 <= first < first + count <= end:
        raise ValueError(
            f"{kind} {first:#x}, {count:#x} of them: a range inside [0, {end:#x}) is needed"
        )
