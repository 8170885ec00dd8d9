"""Who called whom on a vCPU: by the kernel's ORC tables, else by frame pointers.

The stack is the guest's: a trace has an end after so many frames, and what cannot be read ends it.
Source: arch/x86/kernel/unwind_orc.c; System V ABI for x86-64, 3.2.2 (the stack frame).
"""

from __future__ import annotations

import struct

from vmm.guest import orc
from vmm.light.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vmm.guest.orc import Entry, Orc
    from vmm.guest.symbols import Symbols

    Read = Callable[[int, int], bytes]

FRAMES_MAX = 64
KERNEL_HALF = 1 << 63
WORD = (1 << 64) - 1
# struct pt_regs, in the order of the stack.
PT_REGS = (
    "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi",
    "rdi", "orig_rax", "rip", "cs", "rflags", "rsp", "ss",
)  # fmt: skip
# What a processor pushes itself.
IRET = PT_REGS[-5:]


class Frame(Record):
    """``address`` in a function (a return address above the first), its name, and rsp there.

    ``sure`` is False for a guess: code without an ORC entry, or a walk by frame pointers.
    """

    __slots__ = ("address", "sp", "sure", "symbol")
    address: int
    symbol: str | None
    sp: int
    sure: bool

    def __init__(self, address: int, symbol: str | None, sp: int, sure: bool) -> None:
        self._set(address=address, symbol=symbol, sp=sp, sure=sure)

    def __str__(self) -> str:
        return f"{self.address:#018x} {self.symbol or '?'}{'' if self.sure else ' (a guess)'}"


class _State:
    """The registers of one frame, as far as they are known there."""

    def __init__(self, regs: Mapping[str, int]) -> None:
        self.ip, self.sp, self.bp = regs["rip"], regs["rsp"], regs["rbp"]
        # All registers where the frame was interrupted; of a partial frame those before it.
        self.regs: Mapping[str, int] | None = regs
        # Whether ip is the instruction that runs next: a return address belongs to the one before.
        self.exact = True
        self.sure = True


def backtrace(
    regs: Mapping[str, int], read: Read, symbols: Symbols | None, limit: int = FRAMES_MAX
) -> list[Frame]:
    """The frames of a stopped vCPU, its own first, ``limit`` at most.

    ``regs`` as KVM_GET_REGS has them; ``read(gva, n)`` raises ValueError for what is not there.
    Where an interrupt came from user mode, the last frame is that of the user program.
    """
    tables = _tables(read, symbols)
    state = _State(regs)
    frames: list[Frame] = []
    while len(frames) < limit:
        frames.append(_frame(state, symbols))
        try:
            up = _above(state, read, tables)
        except ValueError:
            break
        if not up:
            break
    return frames


def _tables(read: Read, symbols: Symbols | None) -> Orc | None:
    try:
        return orc.Orc(read, symbols) if symbols is not None else None
    except ValueError:
        return None


def _frame(state: _State, symbols: Symbols | None) -> Frame:
    """The function is that of the call, which may be the last instruction before the next one."""
    inside = state.ip if state.exact else state.ip - 1
    name = symbols.at(inside) if symbols is not None else None
    if name and not state.exact:
        function, _, offset = name.partition("+")
        name = f"{function}+{int(offset or '0', 16) + 1:#x}"
    return Frame(state.ip, name, state.sp, state.sure)


def _above(state: _State, read: Read, tables: Orc | None) -> bool:
    """Go on to the caller's frame; False where there is none."""
    user = state.ip < KERNEL_HALF
    entry = None
    if tables is not None and not user:
        entry = tables.entry(state.ip if state.exact else state.ip - 1)
    elif user and tables is not None and state.regs is not None and "cs" in state.regs:
        return False  # the end of a kernel's stack
    if entry is None:
        entry, state.sure = orc.FRAME_POINTER, False
    if entry.kind in (orc.UNDEFINED, orc.END):
        return False
    below = state.sp
    sp = _frame_end(state, entry, read)
    kept = state.bp
    if entry.kind == orc.CALL:
        state.ip, state.sp = _word(read, sp - 8), sp
        caller = None
    else:
        caller = _interrupted(state, entry, read, sp)
    if entry.bp_reg == orc.PREV_SP:
        state.bp = _word(read, sp + entry.bp_offset)
    elif entry.bp_reg == orc.BP:
        state.bp = _word(read, kept + entry.bp_offset)
    elif entry.bp_reg == orc.UNDEFINED and entry.kind == orc.REGS and caller is not None:
        state.bp = caller["rbp"]
    state.regs = caller
    state.exact = entry.signal
    straight = entry.kind == orc.CALL and entry.sp_reg in (orc.SP, orc.BP)
    return bool(state.ip) and not (straight and state.sp <= below)


def _frame_end(state: _State, entry: Entry, read: Read) -> int:
    """Where the frame ends: rsp before the call, or the registers that an entry kept."""
    reg = entry.sp_reg
    if reg == orc.SP:
        return (state.sp + entry.sp_offset) & WORD
    if reg == orc.BP:
        return (state.bp + entry.sp_offset) & WORD
    if reg == orc.SP_INDIRECT:
        return (_word(read, state.sp) + entry.sp_offset) & WORD
    if reg == orc.BP_INDIRECT:
        return _word(read, (state.bp + entry.sp_offset) & WORD)
    name = orc.RARE.get(reg)
    if name is None or state.regs is None or name not in state.regs:
        raise ValueError(f"register {reg} is not known in this frame")
    return state.regs[name]


def _interrupted(state: _State, entry: Entry, read: Read, sp: int) -> Mapping[str, int] | None:
    """Go to where an interrupt, exception or system call came from; the registers there."""
    if entry.kind not in (orc.REGS, orc.REGS_PARTIAL):
        raise ValueError(f"an ORC entry of kind {entry.kind}")
    names = PT_REGS if entry.kind == orc.REGS else IRET
    words = struct.unpack(f"<{len(names)}Q", read(sp, 8 * len(names)))
    found = dict(zip(names, words, strict=True))
    state.ip, state.sp = found["rip"], found["rsp"]
    if entry.kind == orc.REGS_PARTIAL and state.regs is not None:
        found = {**state.regs, **found}
    return found


def _word(read: Read, gva: int) -> int:
    return int.from_bytes(read(gva & WORD, 8), "little")
