"""MEMORY_CONFIG: ``size=16G,shared=on`` and its rules. Pure."""

from __future__ import annotations

from vmm.light.printable import quote, size_text
from vmm.light.record import Record
from vmm.settings.parse import (
    BadValue,
    nearest,
    parse_each,
    parse_integer,
    parse_size,
    parse_switch,
    split_list,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MIB = 1 << 20
PAGE = 4096
# The boot structures take the first MiB; nothing boots in less than this.
SIZE_MIN = 4 * MIB
# What a memory slot of KVM holds with 32-bit page numbers less a sign (KVM_MEM_MAX_NR_PAGES).
SIZE_MAX = 1 << 43
HUGEPAGE_DEFAULT = 2 * MIB
NODE_MAX = 1023
SWITCHES = ("shared", "hugepages", "prefault", "mergeable", "mlock", "thp")
KEYS = ["size", "hugepage_size", "host_numa_node", *SWITCHES]
FORM = (
    "size=16G,shared=on with the keys size, shared, hugepages, hugepage_size, prefault, "
    "mergeable, mlock, thp, host_numa_node"
)


class MemoryConfig(Record):
    """Guest RAM: sizes in bytes; ``host_numa_node`` None for no binding."""

    __slots__ = (
        "host_numa_node", "hugepage_size", "hugepages", "mergeable", "mlock", "prefault", "shared",
        "size", "thp",
    )  # fmt: skip
    size: int
    shared: bool
    hugepages: bool
    hugepage_size: int
    prefault: bool
    mergeable: bool
    mlock: bool
    thp: bool
    host_numa_node: int | None

    def __init__(
        self,
        size: int,
        shared: bool = False,
        hugepages: bool = False,
        hugepage_size: int = HUGEPAGE_DEFAULT,
        prefault: bool = False,
        mergeable: bool = False,
        mlock: bool = False,
        thp: bool = True,
        host_numa_node: int | None = None,
    ) -> None:
        self._set(
            size=size,
            shared=shared,
            hugepages=hugepages,
            hugepage_size=hugepage_size,
            prefault=prefault,
            mergeable=mergeable,
            mlock=mlock,
            thp=thp,
            host_numa_node=host_numa_node,
        )


def parse_memory(text: str) -> MemoryConfig:
    """The whole value; BadValue for an unknown key, a bad value or a combination refused."""
    items = parse_each(split_list(text), _parse_item)
    # An empty value counts as not given.
    return _check(dict([item for item in items if item[1] is not None]))


def _parse_item(item: str) -> tuple[str, Any]:
    key, separator, value = [part.strip() for part in item.partition("=")]
    if key not in KEYS:
        raise BadValue(f"unknown key {quote(key)}{nearest(key, KEYS)}")
    if not separator:
        raise BadValue(f"{key!r} has no value")
    if not value:
        return key, None
    try:
        return key, _parse_key(key, value)
    except BadValue as error:
        raise BadValue(f"{key}: {error}") from None


def _parse_key(key: str, value: str) -> int | bool:
    if key in SWITCHES:
        return parse_switch(value)
    if key == "host_numa_node":
        return parse_integer(value, 0, NODE_MAX)
    return parse_size(value)


def _check(values: dict[str, Any]) -> MemoryConfig:
    if "size" not in values:
        raise BadValue("size is missing")
    if "hugepage_size" in values and not values.get("hugepages"):
        raise BadValue("hugepage_size without hugepages=on")
    config = MemoryConfig(**values)
    huge = config.hugepage_size
    if config.hugepages and (huge < PAGE or huge & (huge - 1)):
        raise BadValue(f"hugepage_size={size_text(huge)} is not a power of two of at least 4K")
    if config.shared and config.mergeable:
        raise BadValue("mergeable=on works on private memory only: use shared=off with it")
    if not SIZE_MIN <= config.size <= SIZE_MAX:
        raise BadValue(
            f"size={size_text(config.size)}: from {size_text(SIZE_MIN)} to {size_text(SIZE_MAX)}"
        )
    page = huge if config.hugepages else PAGE
    if config.size % page:
        size = size_text(config.size)
        raise BadValue(f"size={size} is no multiple of the page size {size_text(page)}")
    return config
