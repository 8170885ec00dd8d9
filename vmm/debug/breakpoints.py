"""Breakpoints of a guest: where they are, how each is made, and which one a vCPU stands on.

A strategy is chosen by what this host's KVM is found to do (abilities.py): hardware while one of
the four is free, int3, then a port instruction, then single steps.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from vmm.debug.abilities import ABILITIES, LENGTHS, ON_ACCESS, ON_EXECUTION, ON_WRITE
from vmm.debug.abilities import INT3 as INT3_CODE
from vmm.debug.gates import Gates
from vmm.debug.onebyte import is_one_byte
from vmm.debug.points import HARDWARE, INT3, PAGE, PORT, STEP, Point
from vmm.debug.sites import Sites
from vmm.errors import HostError
from vmm.light.shown import Shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from vmm.debug.cpu import Cpu
    from vmm.debug.pagewatch import PageWatch
    from vmm.debug.patches import Patches
    from vmm.debug.points import Action, Condition
    from vmm.debug.sites import Site

HARDWARE_MAX = 4
DR6_HITS = 15
DEBUG_EXIT = "debug"
IO_EXIT = "io"
BREAK_EXCEPTION = 3
OUT, OUT_BYTES = 0xE6, 2
MMIO_EXIT = "mmio"


def _at_once(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


class Breakpoints(Shown):
    """All points of a guest. The thread that drives it, while the guest stands still.

    Points are made, switched and removed by any thread: ``at_rest`` sees to the standing still.
    """

    def __init__(
        self, cpus: Sequence[Cpu], patches: Patches, pages: PageWatch, stop_port: int
    ) -> None:
        self.at_rest: Callable[..., Any] = _at_once
        self._pages = pages
        self._cpus = cpus
        self._patches = patches
        self._stop_port = stop_port
        self._gates = Gates(cpus, stop_port)
        self._slots: list[Point] = []
        self._sites = Sites(patches, self._code_of)
        self._armed: list[object] = [None] * len(cpus)
        self._armed_slots: list[Point] = []
        # vCPUs that go on as they are: with a #BP of the guest's own, or to hit something again.
        self._untouched: set[int] = set()

    # --- making and removing ---

    def add(
        self,
        address: int,
        label: str | None,
        action: Action | None,
        hardware: bool | None,
        condition: str | Condition | None,
    ) -> Point:
        """A breakpoint at linear ``address``; HostError when the wanted kind is not possible."""
        point = self._point(address, label, action, condition)
        self.at_rest(self._place, point, hardware)
        return point

    def _point(
        self,
        address: int,
        label: str | None,
        action: Action | None,
        condition: str | Condition | None,
    ) -> Point:
        return Point(
            address, label, action, condition,
            partial(self._at_rest, self._remove), partial(self._at_rest, self._changed),
        )  # fmt: skip

    def _at_rest(self, function: Callable[[Point], None], point: Point) -> None:
        self.at_rest(function, point)

    def _place(self, point: Point, hardware: bool | None) -> None:
        free = ABILITIES.hardware and len(self._slots) < HARDWARE_MAX
        if hardware and not free:
            raise _no_hardware(ABILITIES.hardware, "execution")
        if hardware or (hardware is None and free):
            self._take_slot(point)
        else:
            site = self._site(point.address, point.label)
            point.kind = site.kind
            site.points.append(point)
            self._changed(point)

    def watch(
        self, address: int, label: str | None, size: int, access: str, action: Action | None,
        condition: str | Condition | None,
    ) -> Point:  # fmt: skip
        """By hardware for 1, 2, 4 or 8 aligned bytes while one is free, else by its pages."""
        if size < 1:
            raise ValueError(f"size={size}: at least one byte")
        point = self._point(address, label, action, condition)
        point.size = size
        point.access = access
        self.at_rest(self._place_watch, point)
        return point

    def _place_watch(self, point: Point) -> None:
        address, size, access = point.address, point.size, point.access
        fits = size in LENGTHS and address % size == 0
        if fits and ABILITIES.watch and len(self._slots) < HARDWARE_MAX:
            self._take_slot(point)
        elif access == "w" and ABILITIES.page:
            self._pages.add(point, list(self._cpus[0].pages(address, size)))
            point.kind = PAGE
        elif fits:
            raise _no_hardware(ABILITIES.watch, "write")
        else:
            raise HostError(
                f"{size} bytes at {address:#x} cannot be watched for {access!r}: hardware does 1, "
                "2, 4 or 8 aligned ones, and by pages "
                + ("only writes" if ABILITIES.page else "this KVM reports no writes (tried)"),
                "watch less",
            )

    def _take_slot(self, point: Point) -> None:
        point.kind = HARDWARE
        self._slots.append(point)
        self._changed(point)

    def _site(self, address: int, label: str | None) -> Site:
        site = self._sites.at(address)
        return site or self._sites.make(address, self._software_kind(address, label))

    def _code_of(self, kind: str) -> bytes:
        return INT3_CODE if kind == INT3 else bytes([OUT, self._stop_port])

    def _software_kind(self, address: int, label: str | None) -> str:
        if ABILITIES.int3:
            return INT3
        if ABILITIES.port and self._port_fits(address, label):
            return PORT
        if ABILITIES.step:
            return STEP
        raise HostError(
            f"no breakpoint is possible at {address:#x}: this KVM reports neither int3, nor port "
            "instructions, nor single steps", "use hardware=True, or another host",
        )  # fmt: skip

    def _port_fits(self, address: int, label: str | None) -> bool:
        """Two bytes there are one instruction, or the entry of a function."""
        if any(near in self._sites for near in (address - 1, address + 1)):
            return False
        entry = label is not None and "+" not in label
        gpa = self._gpa(address)
        if gpa is None or self._gpa(address + 1) is None:
            return entry
        cs = self._cpus[0].sregs.cs
        # In user mode the instruction would be a #GP of the guest's.
        if address < 1 << 63 and cs["dpl"] == 3:
            return False
        return entry or not is_one_byte(self._patches.read(gpa, 1)[0], bool(cs["l"]))

    def _gpa(self, address: int) -> int | None:
        return self._cpus[0].translate(address)

    def _remove(self, point: Point) -> None:
        if point.kind == PAGE:
            self._pages.remove(point)
        elif point in self._slots:
            self._slots.remove(point)
        else:
            self._sites.drop(point)
        self._changed(point)

    def _changed(self, point: Point) -> None:
        self._sites.changed(point.address)
        # Watchpoints first, in the registers that they have in a single step as well.
        enabled = [slot for slot in self._slots if slot.enabled]
        self._armed_slots = sorted(enabled, key=lambda slot: not slot.is_watch)

    def forget(self) -> None:
        """Neither the vCPUs' debug settings nor the patches are known (a restored snapshot)."""
        self._armed = [None] * len(self._cpus)
        self._untouched.clear()
        self._sites.restored()

    # --- running ---

    def arm(self) -> None:
        """Before the guest runs: debug registers, and patches in its code."""
        self._untouched.clear()
        changed = self._sites.bring_up(self._gpa)
        running = self._running_debug()
        if changed:
            self._gates.renew(self._armed_slots, self._sites, running, self._stepping_debug())
        self._patches.put()
        self.set_debug(**running)
        self._gates.open()

    def _running_debug(self) -> dict[str, Any]:
        return {
            "breakpoints": tuple([_slot(point) for point in self._armed_slots]),
            "software": INT3 in self._sites.kinds,
            "step": STEP in self._sites.kinds,
        }

    def _stepping_debug(self) -> dict[str, Any]:
        watches = tuple([_slot(point) for point in self._armed_slots if point.is_watch])
        # Where the instruction faults, the step goes through a handler with our int3s in its code.
        return {
            "step": True, "block_irq": ABILITIES.block_irq, "software": ABILITIES.int3,
            "breakpoints": watches,
        }  # fmt: skip

    def set_debug(self, cpus: Sequence[Cpu] | None = None, **debug: object) -> None:
        """KVM_SET_GUEST_DEBUG for these vCPUs (None: all), where it is a change."""
        wanted = tuple(sorted(debug.items()))
        for cpu in self._cpus if cpus is None else cpus:
            known = self._armed[cpu.index]
            nothing = known is None and not any(debug.values())
            if known != wanted and not nothing:
                cpu.vcpu.fd.set_guest_debug(**debug)  # type: ignore[arg-type]
                self._armed[cpu.index] = wanted

    @property
    def any(self) -> bool:
        """True while there is one, of any kind."""
        return bool(self._sites or self._slots)

    def __iter__(self) -> Iterator[Point]:
        for site in self._sites:
            yield from site.points
        yield from self._slots
        yield from self._pages

    def __repr__(self) -> str:
        return "\n".join([repr(point) for point in self]) or "<no breakpoints>"

    def standing_on(self, cpu: Cpu) -> bool:
        """An enabled point is where this vCPU goes on: it would stop there again at once."""
        if cpu.index in self._untouched:
            return False
        address = cpu.address
        if self._sites.under(address) is not None:
            return True
        return any(p.address == address and p.enabled and not p.is_watch for p in self._slots)

    def arm_step(self, cpu: Cpu) -> None:
        """For a single step of this vCPU: out with the patch on which it stands."""
        self._gates.shut(cpu)
        self.set_debug([cpu], **self._stepping_debug())
        self._sites.lift(cpu.address)

    def stepped(self, cpu: Cpu) -> bool:
        """It stopped because a single step is done."""
        reason, _ = cpu.vcpu.loop.newest_exit()
        pc, exception, dr6, _ = cpu.vcpu.loop.debug_exit()
        if reason != DEBUG_EXIT or exception == BREAK_EXCEPTION or dr6 & DR6_HITS:
            return False
        cpu.stopped_at(pc)
        cpu.vcpu.loop.answer()
        return True

    def hits(self, cpu: Cpu) -> list[Point] | None:
        """The points that this vCPU, which wanted an answer, stopped for.

        An empty list: none of ours any more. None: the exit is nothing of ours at all. rip is at
        the breakpoint afterwards.
        """
        loop = cpu.vcpu.loop
        reason, port = loop.newest_exit()
        found: list[Point] | None = None
        if reason == IO_EXIT and port == self._stop_port:
            return self._port_hits(cpu)
        if reason == DEBUG_EXIT:
            found = self._debug_hits(cpu)
        elif reason == MMIO_EXIT:
            found = self._pages.take_hits()
        loop.answer()
        return found

    def put_off(self, cpus: Iterable[Cpu]) -> None:
        """What these have hit nobody was told of: it is hit again when the guest runs."""
        self._untouched.update([cpu.index for cpu in cpus])

    def settle(self, cpu: Cpu) -> None:
        """Answer a stop that an exception came in between, so that the guest is intact."""
        if cpu.vcpu.loop.stood and self.hits(cpu):
            self.put_off([cpu])

    def _port_hits(self, cpu: Cpu) -> list[Point]:
        cpu.flush()
        address = cpu.address - OUT_BYTES
        found = self._sites.hits(address, cpu.translate)
        cpu.vcpu.loop.answer(0 if found is None else OUT_BYTES)
        if found is not None:
            cpu.stopped_at(address)
        return found or []

    def _debug_hits(self, cpu: Cpu) -> list[Point]:
        pc, exception, dr6, _ = cpu.vcpu.loop.debug_exit()
        cpu.stopped_at(pc)
        if exception == BREAK_EXCEPTION:
            hits = self._sites.hits(pc, cpu.translate)
            if hits is None:
                # The guest's own int3 is the guest's. Not in a step: it would see the trap flag.
                self._untouched.add(cpu.index)
                cpu.vcpu.fd.set_guest_debug(inject_bp=True)
                self._armed[cpu.index] = None
            return hits or []
        armed = self._armed_slots
        found = [point for n, point in enumerate(armed) if dr6 >> n & 1 and point.is_watch]
        found += [point for point in armed if not point.is_watch and point.address == pc]
        site = self._sites.at(pc)
        if site is not None and site.kind == STEP:
            found += site.points
        return found


def _slot(point: Point) -> tuple[int, int, int]:
    if not point.is_watch:
        return point.address, ON_EXECUTION, 0
    kind = ON_WRITE if point.access == "w" else ON_ACCESS
    return point.address, kind, LENGTHS[point.size]


def _no_hardware(works: bool, what: str) -> HostError:
    if works:
        return HostError(
            f"all {HARDWARE_MAX} hardware breakpoints of the vCPUs are in use",
            "remove one, or use hardware=False",
        )
    return HostError(
        f"hardware {what} breakpoints do not hit on this host's KVM (tried)",
        "use hardware=False, or another host",
    )
