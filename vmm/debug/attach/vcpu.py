"""A vCPU of a running instance's by requests: what `Cpu` needs of a vCPU's descriptor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmm.debug.registers import GENERAL, SEGMENTS, SYSTEM, TABLES
from vmm.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vmm.debug.attach.link import Link

LIMIT = 1 << 64
SEGMENT_FIELDS = (
    "base", "limit", "selector", "type", "present", "dpl", "db", "s", "l", "g", "avl",
)  # fmt: skip
EVENTS = ("exception", "interrupt", "nmi")
AREAS = {"xsave": 4096, "lapic": 1024}


class RemoteVcpuFd:
    """Registers of vCPU ``index``, checked for their form. Any thread; HostError, see Link."""

    def __init__(self, link: Link, index: int) -> None:
        self._link = link
        self._index = index

    def both(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """General and system registers of one moment."""
        told, _ = self._link.ask("registers", cpu=self._index)
        regs, sregs = told.get("regs"), told.get("sregs")
        if not isinstance(regs, dict) or not isinstance(sregs, dict):
            raise self._link.nonsense("no registers")
        segments = {name: self._numbers(sregs.get(name), SEGMENT_FIELDS) for name in SEGMENTS}
        tables = {name: self._table(sregs.get(name)) for name in TABLES}
        return self._numbers(regs, GENERAL), {**self._numbers(sregs, SYSTEM), **segments, **tables}

    def _numbers(self, told: Any, names: Sequence[str]) -> dict[str, Any]:
        """Those names' values, each an integer of 64 bits."""
        found = {}
        for name in names:
            value = told.get(name) if isinstance(told, dict) else None
            if type(value) is not int or not 0 <= value < LIMIT:
                raise self._link.nonsense(f"register {name} is {str(value)[:40]}")
            found[name] = value
        return found

    def _table(self, told: Any) -> tuple[int, int]:
        if not isinstance(told, list) or len(told) != 2:
            raise self._link.nonsense("no descriptor tables")
        found = self._numbers({"base": told[0], "limit": told[1]}, ("base", "limit"))
        return found["base"], found["limit"]

    def get_regs(self) -> dict[str, Any]:
        """As KVM_GET_REGS."""
        return self.both()[0]

    def get_sregs(self) -> dict[str, Any]:
        """As KVM_GET_SREGS."""
        return self.both()[1]

    def set_regs(self, values: Mapping[str, Any]) -> None:
        """As KVM_SET_REGS, while the guest is held."""
        self._link.ask("set_registers", cpu=self._index, regs=dict(values))

    def set_sregs(self, values: Mapping[str, Any]) -> None:
        """As KVM_SET_SREGS, while the guest is held."""
        self._link.ask("set_registers", cpu=self._index, sregs=dict(values))

    def get_msrs(self, indices: Sequence[int]) -> list[int]:
        """As KVM_GET_MSRS."""
        told, _ = self._link.ask("msrs", cpu=self._index, indices=list(indices))
        values = told.get("values")
        if not isinstance(values, list) or len(values) > len(indices):
            raise self._link.nonsense("no MSRs")
        names = [f"MSR {index:#x}" for index in indices[: len(values)]]
        return list(self._numbers(dict(zip(names, values, strict=True)), names).values())

    def set_msrs(self, pairs: Sequence[tuple[int, int]]) -> int:
        """As KVM_SET_MSRS, while the guest is held."""
        done = 0
        for index, value in pairs:
            told, _ = self._link.ask("set_msr", cpu=self._index, index=index, value=value)
            if told.get("done") != 1:
                break
            done += 1
        return done

    def _area(self, what: str) -> bytes:
        _, data = self._link.ask("state", cpu=self._index, what=what)
        if len(data) != AREAS[what]:
            raise self._link.nonsense(f"{len(data)} bytes of {what}")
        return data

    def get_xsave(self) -> bytes:
        """As KVM_GET_XSAVE."""
        return self._area("xsave")

    def get_lapic(self) -> bytearray:
        """As KVM_GET_LAPIC."""
        return bytearray(self._area("lapic"))

    def get_vcpu_events(self) -> dict[str, Any]:
        """As KVM_GET_VCPU_EVENTS."""
        told, _ = self._link.ask("state", cpu=self._index, what="events")
        found = told.get("events")
        if not isinstance(found, dict):
            raise self._link.nonsense("no events")
        return {
            name: self._numbers(found.get(name), list(found.get(name) or ())) for name in EVENTS
        }

    def set_xsave(self, area: bytes) -> None:
        """Not possible."""
        raise self._refused("xsave")

    def set_lapic(self, page: bytes | bytearray) -> None:
        """Not possible."""
        raise self._refused("lapic")

    def set_vcpu_events(self, values: Mapping[str, Any]) -> None:
        """Not possible."""
        raise self._refused("events")

    def _refused(self, what: str) -> HostError:
        return HostError(
            f"{what} of a running instance's vCPU can be read only",
            "a Guest of your own has it assignable",
        )
