"""Functions of a script behind model-specific registers, by KVM's MSR filter.

Source: Documentation/virt/kvm/api.rst, 4.97 (KVM_X86_SET_MSR_FILTER), 7.21 (user space MSRs).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from vmm._native.kvm import bus
from vmm._native.kvm.bus import Bus
from vmm._native.kvm.hooktarget import HookTarget
from vmm.debug.caller import FAILED, fitting
from vmm.debug.handle import Handle
from vmm.debug.signatures import is_read
from vmm.debug.stop import STOP
from vmm.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmm._native.kvm.vm import VmFd
    from vmm.debug.caller import Caller
    from vmm.debug.cpu import Cpu

    Function = Callable[..., Any]

CAP_USER_SPACE_MSR = 188
CAP_MSR_FILTER = 189
EXIT_REASON_FILTER = 4
RANGES_MAX = 16
RANGE_MSRS = 8 * 0x600
INDEX_END = 1 << 32
# Accesses to the local APIC by MSR never come to the filter (api.rst, 4.97).
X2APIC = range(0x800, 0x900)
SLOT = 8
ONES = (1 << 64) - 1


class MsrWord:
    """The type of GP and DONE."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __repr__(self) -> str:
        return f"vmm.{self._name}"


# What a hook of an MSR returns so that the guest gets a general protection fault, or so that KVM
# hears nothing of a write.
GP: Final = MsrWord("GP")
DONE: Final = MsrWord("DONE")


class MsrHook(Handle):
    """A function of a script behind MSR ``index``; ``hits`` counts the calls.

    As a decorator it takes a function by its arguments: ``read(cpu, index, size)`` or
    ``write(cpu, index, value, size)``. While not ``enabled`` the register is KVM's.
    """

    kind = "msr"

    def __init__(self, index: int, target: MsrTarget, owner: MsrHooks) -> None:
        super().__init__()
        self.index = index
        self.read: Function | None = None
        self.write: Function | None = None
        self.hits = 0
        self._target = target
        self._owner = owner

    def __call__(self, function: Function) -> Function:
        """As a decorator."""
        if is_read(function):
            self.read = function
        else:
            self.write = function
        self._owner.apply()
        return function

    def _switched(self) -> None:
        self._owner.apply()

    def _gone(self) -> None:
        # The register is KVM's again.
        self._target.hook = None
        self._owner.apply()

    def __repr__(self) -> str:
        return f"<msr hook at {self.index:#x}, {self.hits} hits{self._state}>"


class MsrTarget:
    """One register on the bus of MSRs. It stays there when its hook has gone.

    Another vCPU may have come out for it just before: KVM's register answers then.
    """

    def __init__(self, index: int, cpus: Sequence[Cpu], caller: Caller) -> None:
        self.index = index
        self.hook: MsrHook | None = None
        self._cpus = cpus
        self._caller = caller
        self.native = HookTarget(self.access, index)

    def access(
        self, vcpu: int, address: int, value: int, size: int, is_write: bool
    ) -> tuple[int, int]:
        """One access of the guest's, on its vCPU's thread: (value, outcome)."""
        hook = self.hook
        function = None if hook is None else hook.write if is_write else hook.read
        if hook is None or function is None or not hook.enabled:
            return self._pass(vcpu, value, is_write)
        hook.hits += 1

        def check(found: Any) -> Any:
            if found is None or found is GP or (found is DONE and is_write):
                return found
            return fitting(found, size, hook)

        more = (value, size) if is_write else (size,)
        found, outcome = self._caller.ask(vcpu, hook, check, function, address, *more)
        if found is GP:
            return value, bus.FAULT
        if found is DONE:
            return value, outcome
        if found is FAILED and not is_write:
            return ONES, outcome
        if is_write or found is None or found is STOP:
            given = found if isinstance(found, int) else value
            passed, fault = self._pass(vcpu, given, is_write)
            return passed, fault or outcome
        return found, outcome

    def _pass(self, vcpu: int, value: int, is_write: bool) -> tuple[int, int]:
        """What KVM's own register says; #GP where there is none, or none with such a value."""
        fd = self._cpus[max(vcpu, 0)].vcpu.fd
        try:
            if is_write:
                done = fd.set_msrs([(self.index, value)])
                return value, bus.CONTINUE if done == 1 else bus.FAULT
            found = fd.get_msrs([self.index])
        except OSError:
            return value, bus.FAULT
        return (found[0], bus.CONTINUE) if found else (value, bus.FAULT)


class MsrHooks:
    """All hooks of MSRs of a guest, and the filter that brings accesses out of it."""

    def __init__(self, vm: VmFd, cpus: Sequence[Cpu], caller: Caller) -> None:
        self._vm = vm
        self._cpus = cpus
        self._caller = caller
        self._targets: dict[int, MsrTarget] = {}
        self._bus: Bus | None = None

    def add(self, index: int, read: Function | None, write: Function | None) -> MsrHook:
        """See Guest.on_msr()."""
        if not isinstance(index, int) or not 0 <= index < INDEX_END:
            raise ValueError(f"MSR {index!r}: a number below 2^32 is needed")
        if index in X2APIC:
            raise ValueError(
                f"MSR {index:#x} is the local APIC's: KVM answers it without an exit, filter or not"
            )
        target = self._target(index)
        if target.hook is not None:
            raise ValueError(f"an msr hook at {index:#x} overlaps {target.hook!r}")
        hook = MsrHook(index, target, self)
        hook.read, hook.write = read, write
        target.hook = hook
        try:
            self.apply()
        except BaseException:
            target.hook = None
            raise
        return hook

    def _target(self, index: int) -> MsrTarget:
        space = self._bus or self._open()
        if index not in self._targets:
            target = MsrTarget(index, self._cpus, self._caller)
            space.attach(SLOT * index, SLOT, target.native, f"MSR {index:#x}")
            self._targets[index] = target
        return self._targets[index]

    def _open(self) -> Bus:
        if not self._vm.check_extension(CAP_MSR_FILTER):
            raise HostError(
                "this host's KVM has no filter of MSRs (KVM_CAP_X86_MSR_FILTER)",
                "use a kernel from 5.10 on",
            )
        self._vm.enable_cap(CAP_USER_SPACE_MSR, EXIT_REASON_FILTER)
        self._bus = Bus("MSRs")
        for cpu in self._cpus:
            cpu.vcpu.loop.msr = self._bus
        return self._bus

    def apply(self) -> None:
        """Make KVM's filter agree with the hooks that are there."""
        hooks = [t.hook for t in self._targets.values() if t.hook is not None and t.hook.enabled]
        reads = _ranges(sorted([h.index for h in hooks if h.read is not None]), True)
        writes = _ranges(sorted([h.index for h in hooks if h.write is not None]), False)
        if len(reads) + len(writes) > RANGES_MAX:
            raise ValueError(
                f"hooks of MSRs in {len(reads)} ranges of {RANGE_MSRS} for reads and {len(writes)} "
                f"for writes: KVM's filter has {RANGES_MAX}; remove some"
            )
        self._vm.set_msr_filter(reads + writes)


def _ranges(indices: list[int], reads: bool) -> list[tuple[bool, bool, int, bytes]]:
    """The filter's ranges for these MSRs, in ascending order: a bit is 0 for one that is hooked."""
    found: list[tuple[int, bytearray]] = []
    for index in indices:
        if not found or index - found[-1][0] >= RANGE_MSRS:
            found.append((index, bytearray()))
        base, bitmap = found[-1]
        place = index - base
        bitmap.extend(b"\xff" * (place // 8 + 1 - len(bitmap)))
        bitmap[place // 8] &= ~(1 << place % 8)
    return [(reads, not reads, base, bytes(bitmap)) for base, bitmap in found]
