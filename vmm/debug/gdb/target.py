"""A guest as gdb's target: registers, memory, breakpoints, running. Threads are vCPUs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm.debug import stop
from vmm.debug.gdb import memory
from vmm.debug.gdb.registers import RegisterFile
from vmm.debug.stop import Stop
from vmm.errors import HostError
from vmm.vcpu import MP_STATES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmm.debug.breakpoints import Breakpoints
    from vmm.debug.cpu import Cpu
    from vmm.debug.gdb.resume import Order
    from vmm.debug.points import Point
    from vmm.debug.ram import Ram
    from vmm.debug.runcontrol import RunControl

SOFTWARE, HARDWARE, WRITE, READ, ACCESS = range(5)
ACCESSES = {WRITE: "w", ACCESS: "rw"}


class GdbTarget:
    """The thread that drives the guest, while it does. Threads count from 1 on, vCPUs from 0 on."""

    def __init__(
        self, cpus: Sequence[Cpu], ram: Ram, points: Breakpoints, control: RunControl
    ) -> None:
        self.cpus = cpus
        self.control = control
        self.physical = False
        self._ram = ram
        self._points = points
        self._set: dict[tuple[int, int, int], Point] = {}
        # Hits of vCPUs that gdb has not heard of yet.
        self._untold: list[Stop] = []
        # gdb reads register for register, and then all of them again.
        self._files = [RegisterFile(cpu) for cpu in cpus]

    @property
    def threads(self) -> int:
        """How many there are."""
        return len(self.cpus)

    def cpu(self, thread: int) -> Cpu:
        """The vCPU of a thread."""
        if not 1 <= thread <= len(self.cpus):
            raise ValueError(f"no thread {thread}: there are 1 to {len(self.cpus)}")
        return self.cpus[thread - 1]

    def describe(self, thread: int) -> str:
        """A thread in words."""
        state = self.cpu(thread).vcpu.fd.get_mp_state()
        return f"CPU {thread - 1} [{MP_STATES.get(state, f'state {state}')}]"

    # --- registers and memory ---

    def registers(self, thread: int) -> RegisterFile:
        """Those of a thread."""
        self.cpu(thread)
        return self._files[thread - 1]

    def read_memory(self, thread: int, address: int, length: int) -> bytes:
        """As much as there is; NoMemory when there is none."""
        return memory.read(self._ram, self._by(thread), address, length)

    def write_memory(self, thread: int, address: int, data: bytes) -> None:
        """All of it; NoMemory when there is not enough."""
        memory.write(self._ram, self._by(thread), address, data)

    def _by(self, thread: int) -> Cpu | None:
        return None if self.physical else self.cpu(thread)

    # --- breakpoints ---

    def insert(self, kind: int, address: int, size: int) -> bool:
        """A breakpoint or watchpoint; False for a kind that there is not.

        HostError or ValueError tells why one is not possible.
        """
        if kind not in (SOFTWARE, HARDWARE, *ACCESSES):
            return False
        if (kind, address, size) not in self._set:
            self._set[kind, address, size] = self._make(kind, address, size)
        return True

    def _make(self, kind: int, address: int, size: int) -> Point:
        if kind in ACCESSES:
            return self._points.watch(address, None, size, ACCESSES[kind], None, None)
        if kind == SOFTWARE and self.cpus[0].translate(address) is None:
            raise HostError(
                f"{address:#x} is not mapped for CPU 0 now", "use a hardware breakpoint (hbreak)"
            )
        return self._points.add(address, None, None, kind == HARDWARE, None)

    def remove(self, kind: int, address: int, size: int) -> bool:
        """Take one away; False for a kind that there is not."""
        point = self._set.pop((kind, address, size), None)
        if point is not None:
            point.remove()
        return kind in (SOFTWARE, HARDWARE, *ACCESSES)

    def remove_all(self) -> None:
        """Take away what gdb has set."""
        for point in self._set.values():
            point.remove()
        self._set.clear()
        self._untold.clear()

    # --- running ---

    def run(self, orders: dict[int, Order], until: Callable[[], bool]) -> Stop:
        """Let the threads that have orders go on until something stops one, or ``until()``."""
        self._untold, untold = [], self._untold
        for found in untold:
            if found.cpu + 1 in orders and self._still_there(found):
                self._untold = [other for other in untold if other is not found]
                return found
        steppers = [thread for thread, order in orders.items() if order.step]
        if steppers:
            found = self._step(steppers[0], orders, until)
        else:
            alone = len(orders) == 1 and len(self.cpus) > 1
            only = self.cpu(next(iter(orders))) if alone else None
            found = self.control.run(None, until, only, looks=False)
        self._untold += self.control.also
        return self._as_gdb_sees(found)

    def _as_gdb_sees(self, found: Stop) -> Stop:
        """Without its breakpoint, where a segment's base is between rip and the address.

        For gdb, which knows no segments, it would be one that is not there, to be passed over.
        """
        point, cpu = found.where, self.cpus[found.cpu]
        hidden = found.kind == stop.BREAKPOINT and int(cpu.regs.rip) != cpu.address
        return found.replace(where=None) if point is not None and hidden else found

    def _still_there(self, found: Stop) -> bool:
        """A breakpoint is taken away before a vCPU steps off it, and may not have come back."""
        for point in self._set.values():
            if point is found.where:
                return point.is_watch or self.cpus[found.cpu].address == point.address
        return False

    def _step(self, thread: int, orders: dict[int, Order], until: Callable[[], bool]) -> Stop:
        cpu, inside = self.cpu(thread), orders[thread].inside
        while True:
            found = self.control.step(cpu, 1, until, among=len(orders) > 1)
            if found.kind != stop.STEP or inside is None or int(cpu.regs.rip) not in inside:
                return found
