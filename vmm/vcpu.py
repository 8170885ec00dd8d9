"""vCPUs: their state at boot, their threads, and what to say when one cannot go on."""

from __future__ import annotations

import _thread
import os

from vmm._native.kvm.configure import configure
from vmm._native.kvm.runloop import VcpuLoop
from vmm.errors import HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, Protocol, TypeVar

    Seen = TypeVar("Seen")

    class Registers(Protocol):
        """By name, as KVM_GET_REGS and KVM_GET_SREGS have them."""

        def __getitem__(self, name: str) -> Any:
            """One of them."""

    from vmm._native.kvm.bus import Bus
    from vmm._native.kvm.vcpu import VcpuFd
    from vmm._native.memory.guestmem import GuestMemory

GENERAL = (
    ("rip", "rflags", "rsp", "rbp"),
    ("rax", "rbx", "rcx", "rdx"),
    ("rsi", "rdi", "r8", "r9"),
    ("r10", "r11", "r12", "r13"),
    ("r14", "r15"),
)
CODE_BYTES = 16
# Of the largest kernels' bitmap of processors.
AFFINITY_BYTES = 1024
RFLAGS_IF = 1 << 9
# KVM_MP_STATE_* of linux/kvm.h.
MP_STATE_HALTED = 3
MP_STATES_UNBORN = (1, 2)
MP_STATES = {
    0: "running",
    1: "waiting for INIT",
    2: "waiting for a start-up IPI",
    MP_STATE_HALTED: "halted",
}


class Place:
    """Where a vCPU was: linear ``address`` of its code, and whether it was halted there.

    ``waits``: halted with interrupts on, so that any interrupt lets it go on. ``sregs``: how it
    translates addresses, as KVM_GET_SREGS has it.
    """

    def __init__(
        self, address: int, halted: bool, waits: bool, sregs: Mapping[str, Any] | None = None
    ) -> None:
        self.address = address
        self.halted = halted
        self.waits = waits
        self.sregs = sregs or {}


class Vcpu:
    """One vCPU and its thread. All methods belong to the control thread, but hold() and let_go().

    These two belong to whoever drives a guest that is debugged.
    """

    def __init__(self, fd: VcpuFd, pio: Bus, mmio: Bus, done_fd: int) -> None:
        self.fd = fd
        self.index = fd.index
        self.loop = VcpuLoop(fd, pio, mmio, done_fd)
        self._lock = _thread.allocate_lock()
        self._held = False
        # The host's processors that its thread may run on; None: all that are ours.
        self.processors: set[int] | None = None

    def set_entry(
        self, regs: Mapping[str, int], sregs: Mapping[str, Any], fpu: tuple[int, int]
    ) -> None:
        """Where it begins. For the vCPU that boots: INIT resets all of this in the others."""
        self.fd.set_regs(regs)
        self.fd.set_sregs(sregs)
        self.fd.set_fpu(*fpu)

    def patch_lapic(self, patch: Any) -> None:
        """Let ``patch`` change the LAPIC's register page (a bytearray) in place."""
        page = self.fd.get_lapic()
        patch(page)
        self.fd.set_lapic(page)

    def start(self, held: bool = False) -> None:
        """Run the guest on a thread of its own; ``held``, from let_go() on."""
        if self.processors is None:
            self.loop.start(f"vcpu{self.index}", held)
            return
        bitmap = sum([1 << number for number in self.processors])
        try:
            self.loop.start(f"vcpu{self.index}", held, bitmap.to_bytes(AFFINITY_BYTES, "little"))
        except OSError as error:
            raise HostError(
                f"vCPU {self.index} cannot run on {sorted(self.processors)} alone: {error}",
                "choose processors of this process's cpuset in VLLMD_HYPERVISOR_CPU_PLACEMENT",
            ) from error

    def kick(self) -> None:
        """Ask the thread to leave the guest for good."""
        self.loop.kick()

    def join(self) -> int:
        """Wait for the thread's end (kick() first); returns its outcome."""
        return self.loop.join()

    def status(self) -> dict[str, object]:
        """Facts for `status`: seconds the thread ran, and waited for a host CPU (steal)."""
        thread = self.loop.thread_id
        facts: dict[str, object] = {"index": self.index, "running": self.loop.running}
        try:
            with open(f"/proc/self/task/{thread}/schedstat", encoding="ascii") as file:
                ran, waited = file.read().split()[:2]
        except (OSError, ValueError):
            return facts  # it has ended, or this kernel keeps no such statistics
        return {**facts, "thread": thread, "cpu_s": int(ran) / 1e9, "steal_s": int(waited) / 1e9}

    def hold(self, timeout_ms: int = 100) -> bool:
        """Keep the vCPU out of the guest until let_go(); False when it does not leave it."""
        with self._lock:
            self._held = self.loop.pause(timeout_ms)
            return self._held

    @property
    def held(self) -> bool:
        """hold() keeps it out of the guest."""
        return self._held

    def let_go(self) -> None:
        """Let a held vCPU go on; harmless for one that is not."""
        with self._lock:
            self._held = False
            self.loop.resume()

    def look(self, look: Callable[[], Seen]) -> Seen | None:
        """What ``look()`` gives while the vCPU stands still for a moment; None when it does not."""
        with self._lock:
            if self._held:
                return look()
            if not self.loop.pause():
                return None
            try:
                return look()
            finally:
                # One that waits for an answer to its exit is not ours to let go.
                if not self.loop.stands:
                    self.loop.resume()

    def place(self) -> Place | None:
        """Where the running vCPU is now, paused for a moment; None when it cannot be paused."""

        def look() -> Place:
            halted = self.fd.get_mp_state() == MP_STATE_HALTED
            regs, sregs = self.fd.get_regs(), self.fd.get_sregs()
            waits = halted and bool(regs["rflags"] & RFLAGS_IF)
            return Place(linear_address(regs, sregs), halted, waits, sregs)

        return self.look(look)

    def snapshot(self, memory: GuestMemory) -> str:
        """report() of a running vCPU, paused for a moment."""

        def look() -> str:
            state = self.fd.get_mp_state()
            what = MP_STATES.get(state, f"in state {state}")
            if state in MP_STATES_UNBORN:
                return f"vCPU {self.index}: {what}"
            return self.report(memory, what)

        return self.look(look) or f"vCPU {self.index}: does not leave the guest"

    def report(self, memory: GuestMemory, what: str = "") -> str:
        """Registers, code and last exits as text, for a vCPU that stopped or is paused."""
        lines = [f"vCPU {self.index}: {what or self.loop.stop_detail()}"]
        try:
            lines += self._registers(memory)
        except OSError as error:
            lines.append(f"  registers cannot be read: {error}")
        lines.append("  last exits, oldest first:")
        for name, address, size, is_write, data in self.loop.last_exits()[-16:]:
            if name in ("io", "mmio"):
                arrow = "<-" if is_write else "->"
                lines.append(f"    {name} {address:#x} {arrow} {data:#0{2 + 2 * size}x}")
            else:
                lines.append(f"    {name} {address:#x}")
        return "\n".join(lines)

    def _registers(self, memory: GuestMemory) -> list[str]:
        regs = self.fd.get_regs()
        sregs = self.fd.get_sregs()
        lines = ["  " + "  ".join([f"{n:>6}={regs[n]:016x}" for n in row]) for row in GENERAL]
        lines.append("  " + "  ".join([f"{n:>6}={sregs[n]:016x}" for n in ("cr0", "cr2", "cr3")]))
        lines.append("  " + "  ".join([f"{n:>6}={sregs[n]:016x}" for n in ("cr4", "efer")]))
        for name in ("cs", "ss", "tr"):
            s = sregs[name]
            lines.append(
                f"  {name:>6}={s['selector']:04x} base={s['base']:x} limit={s['limit']:x} "
                f"type={s['type']:x} l={s['l']} db={s['db']}"
            )
        lines.append(f"  code at rip: {self._code(linear_address(regs, sregs), memory)}")
        return lines

    def _code(self, linear: int, memory: GuestMemory) -> str:
        gpa = self.fd.translate(linear)
        if gpa is None:
            return "not mapped"
        try:
            return memory.read(gpa, CODE_BYTES).hex(" ")
        except ValueError:
            return f"outside RAM ({gpa:#x})"


def configure_all(
    vcpus: Sequence[Vcpu], tables: list[bytes], msrs: Sequence[tuple[int, int]]
) -> None:
    """CPUID (packed, of each) and MSRs (the same for all); on every processor that is ours."""
    helpers = len(os.sched_getaffinity(0)) - 1
    taken = configure([vcpu.fd for vcpu in vcpus], tables, msrs, helpers)
    for vcpu, done in zip(vcpus, taken, strict=True):
        if done != len(msrs):
            raise HostError(
                f"vCPU {vcpu.index}: KVM refuses MSR {msrs[done][0]:#x}",
                "use a kernel whose KVM offers it",
            )


def start_all(vcpus: Sequence[Vcpu], first: Callable[[], None] | None = None) -> None:
    """Run the guest on threads, which get ready while ``first`` is done. Control thread."""
    for vcpu in vcpus:
        vcpu.start(held=first is not None)
    if first is not None:
        first()
        for vcpu in vcpus:
            vcpu.let_go()


def linear_address(regs: Registers, sregs: Registers) -> int:
    """Of the next instruction: rip, outside of 64-bit code with the base of cs."""
    base = 0 if sregs["cs"]["l"] else sregs["cs"]["base"]
    return int(regs["rip"] + base) & (1 << 64) - 1
