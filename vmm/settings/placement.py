"""CPU_PLACEMENT: ``cpus=2-5,8,node=0,exits=hlt,realtime=on`` and its rules. Pure."""

from __future__ import annotations

from vmm.light.printable import quote
from vmm.light.record import Record
from vmm.settings.memory import NODE_MAX
from vmm.settings.parse import BadValue, nearest, parse_integer, parse_switch, split_list

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

AUTO = "auto"
KEYS = ["cpus", "node", "exits", "realtime"]
# KVM_X86_DISABLE_EXITS_* of linux/kvm.h.
EXITS = {"mwait": 1, "hlt": 2, "pause": 4, "cstate": 8}
# The most that a kernel can be built for is 8192 (CONFIG_NR_CPUS).
CPU_NUMBER_MAX = 8191


class Placement(Record):
    """``cpus`` for vCPU 0, 1 and so on; ``node`` a number, AUTO or None; ``exits`` of EXITS."""

    __slots__ = ("cpus", "exits", "node", "realtime")
    cpus: tuple[int, ...]
    node: int | str | None
    exits: tuple[str, ...]
    realtime: bool

    def __init__(
        self,
        cpus: tuple[int, ...] = (),
        node: int | str | None = None,
        exits: tuple[str, ...] = (),
        realtime: bool = False,
    ) -> None:
        self._set(cpus=cpus, node=node, exits=exits, realtime=realtime)

    def status(self) -> dict[str, object]:
        """Facts for `status`."""
        return {
            "cpus": list(self.cpus),
            "node": self.node,
            "exits": list(self.exits),
            "realtime": self.realtime,
        }


def parse_placement(text: str) -> Placement:
    """The whole value; BadValue for an unknown key, a bad value or a combination refused."""
    values: dict[str, str] = {}
    last = ""
    for item in split_list(text):
        key, separator, value = [part.strip() for part in item.partition("=")]
        if not separator and last == "cpus":
            # A list of processors has commas of its own.
            values[last] += f",{item.strip()}"
            continue
        if key not in KEYS:
            raise BadValue(f"unknown key {quote(key)}{nearest(key, KEYS)}")
        if key in values:
            raise BadValue(f"{key} is given twice")
        if not value:
            raise BadValue(f"{key!r} has no value")
        values[key] = value
        last = key
    placement = Placement(
        tuple(_processors(values.get("cpus", ""))),
        _node(values.get("node")),
        _exits(values.get("exits", "")),
        parse_switch(values.get("realtime", "off")),
    )
    if placement.realtime and not placement.cpus:
        raise BadValue(
            "realtime=on tells the guest that its vCPUs never wait for a processor: it needs cpus="
        )
    return placement


def _processors(text: str) -> Iterator[int]:
    seen = set()
    for part in [part.strip() for part in text.split(",")] if text else ():
        first, dash, last = part.partition("-")
        low = parse_integer(first, 0, CPU_NUMBER_MAX)
        high = parse_integer(last, low, CPU_NUMBER_MAX) if dash else low
        for number in range(low, high + 1):
            if number in seen:
                raise BadValue(f"processor {number} is named twice: one vCPU runs on each")
            seen.add(number)
            yield number


def _node(text: str | None) -> int | str | None:
    return text if text is None or text == AUTO else parse_integer(text, 0, NODE_MAX)


def _exits(text: str) -> tuple[str, ...]:
    words = tuple([word.strip() for word in text.split("+")]) if text else ()
    for word in words:
        if word not in EXITS:
            raise BadValue(f"exits: unknown word {quote(word)}{nearest(word, list(EXITS))}")
    return tuple(dict.fromkeys(words))
