"""The kernel's own description of its types (BTF), read out of guest RAM: where a member is.

A kernel built with CONFIG_DEBUG_INFO_BTF keeps it between the symbols __start_BTF and __stop_BTF.
All of it is the guest's: sizes are bounded, types that contain themselves come to an end.
Source: Documentation/bpf/btf.rst of Linux 6.12; include/uapi/linux/btf.h.
"""

from __future__ import annotations

import struct

from vmm.errors import GuestError
from vmm.light.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

START, STOP = "__start_BTF", "__stop_BTF"
MAGIC = 0xEB9F
HEADER = struct.Struct("<HBBIIIII")
TYPE = struct.Struct("<III")
MEMBER = struct.Struct("<III")
# Debian's have 5 MiB and 130,000 types.
BYTES_MAX = 64 << 20
TYPES_MAX = 1 << 20
NAME_BYTES_MAX = 512
DEPTH_MAX = 16
MEMBERS_MAX = 1 << 14
INT, ARRAY, STRUCT, UNION, ENUM, FUNC_PROTO, VAR, DATASEC, DECL_TAG, ENUM64 = (
    1, 3, 4, 5, 6, 13, 14, 15, 17, 19,
)  # fmt: skip
KINDS = 20
# const, volatile, restrict, typedef, type tag: another type under another name.
NAMED = (8, 9, 10, 11, 18)
# Bytes behind each type: so many, and so many for each of its parts.
BEHIND = {
    INT: (4, 0), ARRAY: (12, 0), STRUCT: (0, 12), UNION: (0, 12), ENUM: (0, 8),
    FUNC_PROTO: (0, 8), VAR: (4, 0), DATASEC: (0, 12), DECL_TAG: (4, 0), ENUM64: (0, 12),
}  # fmt: skip


class Member(Record):
    """A part of a struct: ``offset`` in bytes, and the number of its type."""

    __slots__ = ("name", "offset", "type_id")
    name: str
    offset: int
    type_id: int

    def __init__(self, name: str, offset: int, type_id: int) -> None:
        self._set(name=name, offset=offset, type_id=type_id)


class Btf:
    """The types of one kernel; GuestError for what is none, or damaged. Any thread."""

    def __init__(self, data: bytes) -> None:
        if len(data) < HEADER.size:
            raise _damaged(f"{len(data)} bytes are no header")
        magic, version, _, head, types, types_size, names, names_size = HEADER.unpack_from(data)
        if magic != MAGIC or version != 1:
            raise _damaged(f"magic {magic:#x}, version {version}")
        if max(head + types + types_size, head + names + names_size) > len(data):
            raise _damaged("its tables are longer than itself")
        self._types = data[head + types :][:types_size]
        self._names = data[head + names :][:names_size]
        self._places = list(self._walk())
        self._structs = self._index()

    @classmethod
    def from_ram(cls, read: Callable[[int, int], bytes], symbols: Mapping[str, int]) -> Btf:
        """Of the kernel that runs; ``read(gva, n)`` raises ValueError for what is not there."""
        try:
            start, stop = symbols[START], symbols[STOP]
            if not 0 < stop - start <= BYTES_MAX:
                raise _damaged(f"{START}={start:#x}, {STOP}={stop:#x}")
            return cls(read(start, stop - start))
        except KeyError:
            raise GuestError(
                "this kernel does not describe its types (no BTF)",
                "use a kernel with CONFIG_DEBUG_INFO_BTF, or drgn with a vmlinux",
            ) from None
        except ValueError as error:
            raise _damaged(str(error)) from error

    def _walk(self) -> Iterator[int]:
        """Where each type begins; number 1 is the first."""
        at, size = 0, len(self._types)
        while at < size:
            if size - at < TYPE.size:
                raise _damaged(f"a type at {at:#x} that has no end")
            _, info, _ = TYPE.unpack_from(self._types, at)
            kind = info >> 24 & 31
            if not 0 < kind < KINDS:
                raise _damaged(f"a type of kind {kind} at {at:#x}")
            fixed, each = BEHIND.get(kind, (0, 0))
            yield at
            at += TYPE.size + fixed + each * (info & 0xFFFF)
        if at != size:
            raise _damaged("the last type has no end")

    def _index(self) -> dict[str, int]:
        """Places of structs and unions by name; the first of a name counts."""
        if len(self._places) > TYPES_MAX:
            raise _damaged(f"{len(self._places)} types")
        found: dict[str, int] = {}
        for place in self._places:
            name, info, _ = TYPE.unpack_from(self._types, place)
            if name and info >> 24 & 31 in (STRUCT, UNION):
                found.setdefault(self._name(name), place)
        return found

    def _name(self, at: int) -> str:
        return self._names[at : at + NAME_BYTES_MAX].partition(b"\0")[0].decode("ascii", "replace")

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, name: object) -> bool:
        return name in self._structs

    def size(self, struct_name: str) -> int:
        """sizeof() of a struct, in bytes."""
        _, _, size = TYPE.unpack_from(self._types, self._place(struct_name))
        return int(size)

    def members(self, struct_name: str) -> dict[str, Member]:
        """All members of a struct by name, those of nameless structs in it among them."""
        found: dict[str, Member] = {}
        for member in self._members(self._place(struct_name), 0, 0, [0]):
            found.setdefault(member.name, member)
        return found

    def offset(self, struct_name: str, path: str) -> int:
        """offsetof() of a member in bytes; ``path`` may go on into it ("se.vruntime"). KeyError."""
        place, total = self._place(struct_name), 0
        words = path.split(".")
        for number, word in enumerate(words):
            for member in self._members(place, 0, 0, [0]):
                if member.name == word:
                    break
            else:
                raise KeyError(f"{struct_name} has no member {'.'.join(words[: number + 1])!r}")
            total += member.offset
            inner = self._struct_of(member.type_id)
            if number + 1 < len(words) and inner is None:
                raise KeyError(f"{struct_name}.{'.'.join(words[: number + 1])} is no struct")
            place = inner if inner is not None else place
        return total

    def _place(self, struct_name: str) -> int:
        try:
            return self._structs[struct_name]
        except KeyError:
            raise KeyError(f"no struct {struct_name!r} in the kernel's BTF") from None

    def _struct_of(self, type_id: int) -> int | None:
        """The place of a struct or union behind typedefs and the like; None for anything else."""
        for _ in range(DEPTH_MAX):
            if not 0 < type_id <= len(self._places):
                return None
            place = self._places[type_id - 1]
            _, info, type_id = TYPE.unpack_from(self._types, place)
            kind = info >> 24 & 31
            if kind in (STRUCT, UNION):
                return place
            if kind not in NAMED:
                return None
        return None

    def _members(self, place: int, base: int, depth: int, seen: list[int]) -> Iterator[Member]:
        _, info, _ = TYPE.unpack_from(self._types, place)
        bits = (1 << 24) - 1 if info >> 31 else (1 << 32) - 1
        for number in range(info & 0xFFFF):
            seen[0] += 1
            if seen[0] > MEMBERS_MAX:
                raise _damaged("structs without end")
            at = place + TYPE.size + number * MEMBER.size
            name, type_id, offset = MEMBER.unpack_from(self._types, at)
            start = base + (offset & bits) // 8
            if name:
                yield Member(self._name(name), start, type_id)
            elif depth < DEPTH_MAX:
                inner = self._struct_of(type_id)
                if inner is not None:
                    yield from self._members(inner, start, depth + 1, seen)

    def __repr__(self) -> str:
        return f"<Btf: {len(self)} types, {len(self._structs)} structs by name>"


def _damaged(why: str) -> GuestError:
    return GuestError(f"the kernel's BTF is damaged: {why}", "use drgn with a vmlinux")
