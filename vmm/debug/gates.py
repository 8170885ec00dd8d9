"""Keeps hits that nobody wants out of Python: what native code is told of a guest's points."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmm._native.kvm.pointgate import PointGate, PointTable
from vmm.debug.abilities import ABILITIES
from vmm.debug.points import STEP

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from vmm.debug.cpu import Cpu
    from vmm.debug.points import Point
    from vmm.debug.sites import Site


class Gates:
    """One gate for each vCPU. The thread that drives the guest, while the guest stands still."""

    def __init__(self, cpus: Sequence[Cpu], stop_port: int) -> None:
        self._cpus = cpus
        self._stop_port = stop_port
        self._gates: list[PointGate] = []
        self._wanted = False

    def renew(
        self,
        slots: Sequence[Point],
        sites: Iterable[Site],
        running: Mapping[str, Any],
        stepping: Mapping[str, Any],
    ) -> None:
        """``slots`` are the enabled points in debug registers; the rest as set_guest_debug()."""
        here = [site for site in sites if site.patch is not None or site.kind == STEP]
        wants = [(site, [p.native for p in site.points if p.enabled]) for site in here]
        wants = [(site, natives) for site, natives in wants if natives]
        conditions = [point.native for point in slots]
        for _, natives in wants:
            conditions += natives
        self._wanted = bool(running["step"]) or any(one is not None for one in conditions)
        if not self._wanted:
            return
        table = PointTable(
            [(slot.address, slot.is_watch, slot.native) for slot in slots],
            [(site.address, site.patch, natives) for site, natives in wants],
            running, stepping, len(self._cpus) == 1, ABILITIES.resume_flag, self._stop_port,
        )  # fmt: skip
        for gate in self._gates or self._make():
            gate.set_table(table)

    def _make(self) -> list[PointGate]:
        self._gates = [PointGate() for _ in self._cpus]
        for cpu, gate in zip(self._cpus, self._gates, strict=True):
            cpu.vcpu.loop.set_gate(gate)
        return self._gates

    def open(self) -> None:
        """The guest runs: what is hit in vain does not come up."""
        for gate in self._gates:
            gate.active = self._wanted

    def shut(self, cpu: Cpu) -> None:
        """Every exit of this vCPU comes up: a single step."""
        if self._gates:
            self._gates[cpu.index].active = False
