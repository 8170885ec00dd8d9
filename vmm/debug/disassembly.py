"""Machine code as text, by capstone (an optional package)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vmm.debug.extras import need

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

INSTRUCTION_BYTES_MAX = 15
PAGE_BYTES = 4096
BAD = "(bad)"


@dataclass(frozen=True)
class Instruction:
    """One instruction: its linear address, its bytes, its text in Intel's words, and the symbol."""

    address: int
    bytes: bytes
    text: str
    symbol: str | None = None

    @property
    def size(self) -> int:
        """Bytes of it."""
        return len(self.bytes)

    def __str__(self) -> str:
        name = f"  {self.symbol}" if self.symbol else ""
        return f"{self.address:#018x}  {self.bytes.hex(' '):<30} {self.text}{name}"


class Listing(list[Instruction]):
    """Instructions, one after the other."""

    def __str__(self) -> str:
        return "\n".join([str(one) for one in self])

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        from html import escape

        return f"<pre>{escape(str(self))}</pre>"


def code_bits(sregs: Mapping[str, Any]) -> int:
    """16, 32 or 64: how the code segment has its instructions (SDM 3A, 3.4.5)."""
    cs = sregs["cs"]
    if cs["l"]:
        return 64
    return 32 if cs["db"] else 16


def disassemble(
    read: Callable[[int, int], bytes],
    address: int,
    count: int,
    bits: int = 64,
    symbol_at: Callable[[int], str | None] = lambda address: None,
) -> Listing:
    """``count`` instructions from linear ``address`` on; fewer where the code cannot be read.

    ``read(address, n)`` raises ValueError for what is not there. A byte that is no instruction is
    ``(bad)``. HostError without capstone, ValueError for a bad count.
    """
    if count < 1:
        raise ValueError(f"n={count}: at least one instruction")
    capstone = need("capstone", "disassemble()")
    mode = {16: capstone.CS_MODE_16, 32: capstone.CS_MODE_32, 64: capstone.CS_MODE_64}[bits]
    engine = capstone.Cs(capstone.CS_ARCH_X86, mode)
    found = Listing()
    while len(found) < count:
        code = _readable(read, address)
        if not code:
            break
        one = _first(engine, code, address, symbol_at)
        found.append(one)
        address += one.size
    return found


def _first(
    engine: Any, code: bytes, address: int, symbol_at: Callable[[int], str | None]
) -> Instruction:
    for at, size, name, operands in engine.disasm_lite(code, address, 1):
        return Instruction(at, code[:size], f"{name} {operands}".strip(), symbol_at(at))
    return Instruction(address, code[:1], BAD, symbol_at(address))


def _readable(read: Callable[[int, int], bytes], address: int) -> bytes:
    """The bytes of one instruction at most, those of the next page where that is there."""
    first = min(INSTRUCTION_BYTES_MAX, PAGE_BYTES - address % PAGE_BYTES)
    pieces: Sequence[tuple[int, int]] = [
        (address, first), (address + first, INSTRUCTION_BYTES_MAX - first),
    ]  # fmt: skip
    code = b""
    for at, length in pieces:
        try:
            code += read(at, length) if length else b""
        except ValueError:
            break
    return code


def block_starts(listing: Sequence[Instruction]) -> list[int]:
    """Where basic blocks begin in the code of one function: its entry, behind each jump, and where
    jumps inside of it lead.
    """
    if not listing:
        return []
    inside = {one.address for one in listing}
    starts = {listing[0].address}
    for one in listing:
        word, _, target = one.text.partition(" ")
        if word.startswith(("j", "loop")) or word in ("ret", "leave", "ud2"):
            after = one.address + one.size
            starts |= {after} & inside
            if target.startswith("0x"):
                starts |= {int(target, 16)} & inside
    return sorted(starts)
