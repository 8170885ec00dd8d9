"""The state of the PCI bus: what the guest wrote to configuration space, and where BARs answer."""

from __future__ import annotations

from devices.pci.config_space import SIZE
from vmm.light.state import (
    data,
    exactly,
    flag,
    int_in,
    many,
    maybe,
    misfit,
    read_state,
    record,
    unsigned,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from devices.pci.bar import Bar
    from devices.pci.decoding import Decoding
    from devices.pci.function import PciFunction
    from vmm.light.state import Check

NAME = "PCI bus"
FLAGS_MAX = 0xF


def bus_state(functions: Sequence[PciFunction | None], address: int) -> dict[str, object]:
    """All of it; ``address`` is mechanism 1's register. The vCPUs stand still."""
    states = [_function_state(function) for function in functions if function is not None]
    return {"version": 1, "address": address, "functions": states}


def _function_state(function: PciFunction) -> dict[str, object]:
    return {
        "slot": function.slot,
        "name": function.name,
        "config": bytes(function.config.data[: function.config.end]),
        "bars": [_bar_state(bar) for bar in function.bars],
    }


def _bar_state(bar: Bar) -> dict[str, object]:
    return {
        "value": bar.value,
        "flags": bar.flags,
        "probing": list(bar.probing),
        "mapped": bar.mapped,
    }


def set_bus_state(
    functions: Sequence[PciFunction | None], decoding: Decoding, state: object
) -> int:
    """Put it back; the address register's value. The caller holds the bus's lock.

    StateError, and nothing changed.
    """
    here = [function for function in functions if function is not None]
    found = read_state(
        NAME,
        state,
        {"address": unsigned(32), "functions": _each(here)},
    )
    places = []
    for function, one in zip(here, found["functions"], strict=True):
        one["config"] = _check_config(function, one["config"])
        for bar, values in zip(function.bars, one["bars"], strict=True):
            _check_bar(function, bar, values, decoding)
            places.append((function, bar, values["mapped"]))
    _check_overlap(places)
    for function, one in zip(here, found["functions"], strict=True):
        function.config.data[:] = one["config"]
        for bar, values in zip(function.bars, one["bars"], strict=True):
            bar.value, bar.flags, bar.probing = values["value"], values["flags"], values["probing"]
    decoding.place(places)
    address: int = found["address"]
    return address


def _each(here: list[PciFunction]) -> Check:
    """A list of just these functions, in their order."""
    checks = [
        record(
            {
                "slot": int_in(function.slot, function.slot),
                "name": exactly(function.name),
                "config": data(function.config.end),
                "bars": many(_bar(), len(function.bars)),
            }
        )
        for function in here
    ]
    order = iter(checks)

    def one(value: object) -> Any:
        return next(order)(value)

    return many(one, len(here))


def _bar() -> Check:
    return record(
        {
            "value": unsigned(64),
            "flags": int_in(0, FLAGS_MAX),
            "probing": many(flag, 2),
            "mapped": maybe(unsigned(64)),
        }
    )


def _check_config(function: PciFunction, config: bytes) -> bytes:
    """The whole space again; only what a guest may write can differ from ours."""
    full = config.ljust(SIZE, b"\0")
    own = function.config
    if full != own.data:
        differs = int.from_bytes(full, "little") ^ int.from_bytes(own.data, "little")
        fixed = differs & ~int.from_bytes(own.mask, "little")
        if fixed:
            offset = (fixed & -fixed).bit_length() - 1 >> 3
            raise misfit(
                NAME,
                f", {function.name}: config is {full[offset]:#x} at {offset:#x}, where no guest "
                f"can write: {own.data[offset]:#x} is needed",
            )
    return full


def _check_bar(function: PciFunction, bar: Bar, values: dict[str, Any], decoding: Decoding) -> None:
    where = f", {function.name}: BAR {bar.index}"
    value, mapped = values["value"], values["mapped"]
    if value % bar.size or (value >> 32 and not bar.wide):
        raise misfit(NAME, f"{where} holds {value:#x}, no {bar.kind} address of {bar.size:#x}")
    if mapped is not None and (mapped % bar.size or not decoding.inside(bar, mapped)):
        raise misfit(NAME, f"{where} answers at {mapped:#x}, outside the PCI windows")
    # The enable bit of an expansion ROM is the only one that a guest changes.
    if (values["flags"] ^ bar.flags) & ~bar.writable_flags:
        raise misfit(NAME, f"{where} has the flags {values['flags']:#x}, not {bar.flags:#x}")


def _check_overlap(places: list[tuple[PciFunction, Bar, int | None]]) -> None:
    taken = sorted(
        (bar.space, mapped, mapped + bar.size, f"{function.name} BAR {bar.index}")
        for function, bar, mapped in places
        if mapped is not None
    )
    last_space, last_end, last_name = "", 0, ""
    for space, start, end, name in taken:
        if space == last_space and start < last_end:
            raise misfit(NAME, f", {last_name} and {name} answer at {start:#x} both")
        last_space, last_end, last_name = space, end, name
