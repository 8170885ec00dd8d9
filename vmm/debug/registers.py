"""Registers of a vCPU as attributes: read once while it stands still, written before it runs."""

from __future__ import annotations

from operator import index
from typing import TYPE_CHECKING, Any

from vmm.light.shown import Shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

MASK = (1 << 64) - 1
GENERAL = (
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15", "rip", "rflags",
)  # fmt: skip
SYSTEM = ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base")
SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")
TABLES = ("gdt", "idt")


class _Registers(Shown):
    """What general and system registers have in common. The thread that drives the guest only."""

    _names: tuple[str, ...] = ()
    __slots__ = ("_changed", "_get", "_set", "_still", "_values")

    def __init__(
        self,
        get: Callable[[], dict[str, Any]],
        put: Callable[[dict[str, Any]], None],
        still: Callable[[], None],
    ) -> None:
        """``still`` raises when the guest runs."""
        fill = object.__setattr__
        fill(self, "_get", get)
        fill(self, "_set", put)
        fill(self, "_still", still)
        fill(self, "_values", None)
        fill(self, "_changed", False)

    def _load(self) -> dict[str, Any]:
        values: dict[str, Any] | None = self._values
        if values is None:
            self._still()
            values = self._get()
            object.__setattr__(self, "_values", values)
        return values

    @property
    def changed(self) -> bool:
        """Some are not in the vCPU yet."""
        changed: bool = self._changed
        return changed

    def flush(self) -> None:
        """Write changes to the vCPU; what is in it counts anew afterwards."""
        if self._values is None:
            return
        if self._changed:
            self._set(self._values)
        object.__setattr__(self, "_changed", False)
        object.__setattr__(self, "_values", None)

    @property
    def known(self) -> bool:
        """True when they were read already."""
        return self._values is not None

    def forget(self) -> None:
        """Drop changes, and what was read."""
        object.__setattr__(self, "_changed", False)
        object.__setattr__(self, "_values", None)

    def __getattr__(self, name: str) -> Any:
        if name in self._names:
            return self._load()[name]
        raise AttributeError(f"no register {name!r}: there are {', '.join(self._names)}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self._names:
            raise AttributeError(f"no register {name!r}: there are {', '.join(self._names)}")
        self._still()
        self._load()[name] = self._checked(name, value)
        object.__setattr__(self, "_changed", True)

    def _checked(self, name: str, value: Any) -> Any:
        try:
            value = index(value)
        except TypeError:
            raise TypeError(f"{name}={value!r}: an integer of 64 bits is needed") from None
        if not -(1 << 63) <= value <= MASK:
            raise ValueError(f"{name}={value:#x} does not fit into 64 bits")
        return value & MASK

    def __getitem__(self, name: str) -> Any:
        if name not in self._names:
            raise KeyError(name)
        return self._load()[name]

    def __setitem__(self, name: str, value: Any) -> None:
        setattr(self, name, value)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __dir__(self) -> list[str]:
        return list(self._names)

    def as_dict(self) -> dict[str, Any]:
        """All of them, a copy."""
        return dict(self._load())

    def update(self, values: Mapping[str, Any]) -> None:
        """Set several."""
        for name, value in values.items():
            setattr(self, name, value)


class Regs(_Registers):
    """General registers: rax to r15, rip, rflags; 64 bits each. Source: api.rst, KVM_GET_REGS."""

    _names = GENERAL
    __slots__ = ()

    def __repr__(self) -> str:
        values = self._load()
        rows = [GENERAL[n : n + 4] for n in range(0, len(GENERAL), 4)]
        lines = ["  ".join([f"{name:>6}={values[name]:016x}" for name in row]) for row in rows]
        return "\n".join(lines)


class Sregs(_Registers):
    """Control registers, efer, apic_base (integers), segments (dicts), gdt and idt (base, limit).

    A segment is assigned as a whole: ``sregs.cs = {**sregs.cs, "base": 0}``.
    Source: api.rst, KVM_GET_SREGS.
    """

    _names = (*SYSTEM, *SEGMENTS, *TABLES)
    __slots__ = ()

    def _checked(self, name: str, value: Any) -> Any:
        if name in SYSTEM:
            return super()._checked(name, value)
        known = set(self._load()[name]) if name in SEGMENTS else None
        if known is not None and set(value) != known:
            raise ValueError(f"{name} needs the fields {', '.join(sorted(known))}")
        return value

    def __repr__(self) -> str:
        values = self._load()
        lines = ["  ".join([f"{name}={values[name]:#x}" for name in SYSTEM])]
        for name in SEGMENTS:
            segment = values[name]
            lines.append(
                f"{name:>4} {segment['selector']:04x} base={segment['base']:x} "
                f"limit={segment['limit']:x} type={segment['type']:x} dpl={segment['dpl']} "
                f"l={segment['l']} db={segment['db']}"
            )
        lines += [
            f"{name:>4} base={values[name][0]:x} limit={values[name][1]:x}" for name in TABLES
        ]
        return "\n".join(lines)
