"""Frames by ORC tables of both forms and by frame pointers, on stacks written by hand."""

from __future__ import annotations

import functools
import struct
import time

import pytest

from tests.support.fake_kernel import DIRECT, IMAGE_GPA, STACK_GPA, FakeKernel
from vmm.guest import orc, pagetables
from vmm.guest.backtrace import FRAMES_MAX, backtrace
from vmm.guest.symbols import Symbols

STACK = DIRECT + STACK_GPA
FUNCTIONS = ("leaf", "framed", "caller", "entry", "bottom")
SYMBOLS = [("t", name, 0x1000 + 0x100 * n) for n, name in enumerate(FUNCTIONS)]
UNDEFINED, PREV_SP, BP, SP, SP_INDIRECT = orc.UNDEFINED, orc.PREV_SP, orc.BP, orc.SP, 9
CALL, REGS, PARTIAL, END = orc.CALL, orc.REGS, orc.REGS_PARTIAL, orc.END


def bits(form: str, kind: int, sp_reg: int, bp_reg: int = UNDEFINED, signal: bool = False) -> int:
    if form == "6.12":
        return sp_reg | bp_reg << 4 | kind << 8 | signal << 11
    if kind == END:
        return 1 << 10
    return sp_reg | bp_reg << 4 | (kind - CALL) << 8


def table(form: str, rows) -> list:
    """(function's number, kind, (sp register, offset), (bp register, offset)) for each."""
    made = []
    for number, kind, sp, bp in rows:
        signal = kind in (REGS, PARTIAL)
        made.append(
            (0x1000 + 0x100 * number, (sp[1], bp[1], bits(form, kind, sp[0], bp[0], signal)))
        )
    return made


NONE = (UNDEFINED, 0)
ROWS = [
    (0, CALL, (SP, 8), NONE),
    (1, CALL, (BP, 16), (PREV_SP, -16)),
    (2, CALL, (SP, 24), NONE),
    (3, REGS, (SP, 0), NONE),
    (4, END, NONE, NONE),
]


class Stack:
    """Words on a stack that grows up from STACK, and what a trace finds there."""

    def __init__(self, kernel: FakeKernel) -> None:
        self.kernel = kernel
        self.read = functools.partial(pagetables.read, kernel.memory, kernel.paging)
        self.symbols = Symbols.from_ram(kernel.memory, kernel.paging)

    def put(self, *words: int) -> None:
        self.kernel.memory.write(STACK_GPA, struct.pack(f"<{len(words)}Q", *words))

    def trace(self, rip: int, rbp: int = 0, **more: int) -> list[str | None]:
        regs = {"rip": rip, "rsp": STACK, "rbp": rbp, **more}
        return [frame.symbol for frame in backtrace(regs, self.read, self.symbols)]

    def function(self, name: str, offset: int = 0) -> int:
        return self.symbols[name] + offset


@pytest.fixture(params=["6.1", "6.12"])
def stack(request):
    return Stack(FakeKernel(SYMBOLS, request.param, orc=table(request.param, ROWS)))


def test_calls_by_orc(stack):
    framed, caller, bottom = (stack.function(name, 0x20) for name in (*FUNCTIONS[1:3], "bottom"))
    # leaf was called by framed, whose rbp leads to: the old rbp, then the return address.
    stack.put(framed, 0, 0xBB, caller, 1, 2, bottom)
    trace = stack.trace(stack.function("leaf", 4), rbp=STACK + 0x10)
    assert trace == ["leaf+0x4", "framed+0x20", "caller+0x20", "bottom+0x20"]


def test_a_call_that_does_not_return_belongs_to_its_caller(stack):
    """The return address is the next function's first byte; the entry is that of the call."""
    stack.put(stack.function("caller"), 0, stack.function("bottom", 1))
    assert stack.trace(stack.function("leaf"), rbp=STACK)[1] == "framed+0x100"


def interrupted(**regs: int) -> list[int]:
    names = (
        "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs rflags rsp ss"
    )
    return [regs.get(name, 0) for name in names.split()]


def test_through_an_interrupt(stack):
    """The interrupted instruction did not run yet: its own entry counts, and its registers."""
    frame = interrupted(rip=stack.function("framed"), cs=0x10, rsp=STACK + 0x200, rbp=STACK + 0x300)
    stack.put(stack.function("entry", 8), *frame)
    kernel = stack.kernel
    kernel.memory.write(STACK_GPA + 0x300, struct.pack("<2Q", 0, stack.function("bottom", 3)))
    trace = stack.trace(stack.function("leaf"))
    assert trace == ["leaf", "entry+0x8", "framed", "bottom+0x3"]


def test_the_end_is_where_the_user_was(stack):
    frame = interrupted(rip=0x401234, cs=0x33, rsp=0x7FFF0000, rbp=0x7FFF0010)
    stack.put(stack.function("entry", 8), *frame)
    regs = {"rip": stack.function("leaf"), "rsp": STACK, "rbp": 0}
    frames = backtrace(regs, stack.read, stack.symbols)
    assert [f.symbol for f in frames] == ["leaf", "entry+0x8", None]
    assert (frames[-1].address, frames[-1].sp, frames[-1].sure) == (0x401234, 0x7FFF0000, True)
    assert str(frames[0]).endswith("leaf")


def test_another_stack_by_a_pointer_on_this_one():
    form = "6.12"
    rows = [(0, CALL, (SP_INDIRECT, 8), NONE), *ROWS[1:]]
    stack = Stack(FakeKernel(SYMBOLS, form, orc=table(form, rows)))
    stack.put(STACK + 0x100)
    stack.kernel.memory.write(STACK_GPA + 0x100, stack.function("bottom", 9).to_bytes(8, "little"))
    assert stack.trace(stack.function("leaf")) == ["leaf", "bottom+0x9"]


@pytest.mark.parametrize("number", [orc.R10, orc.R13, orc.DI, orc.DX])
def test_a_frame_by_a_rare_register(number):
    form = "6.12"
    stack = Stack(
        FakeKernel(SYMBOLS, form, orc=table(form, [(0, CALL, (number, 0), NONE), *ROWS[1:]]))
    )
    stack.put(0, 0, stack.function("bottom", 9))
    more = {orc.RARE[number]: STACK + 0x18}
    assert stack.trace(stack.function("leaf"), **more) == ["leaf", "bottom+0x9"]
    assert stack.trace(stack.function("leaf")) == ["leaf"]


def test_frame_pointers_where_there_is_no_orc():
    stack = Stack(FakeKernel(SYMBOLS))
    caller, bottom = stack.function("caller", 5), stack.function("bottom", 6)
    stack.put(0, 0, STACK + 0x20, caller, 0, bottom)
    regs = {"rip": stack.function("leaf"), "rsp": STACK, "rbp": STACK + 0x10}
    frames = backtrace(regs, stack.read, stack.symbols)
    assert [(f.symbol, f.sure) for f in frames] == [
        ("leaf", True), ("caller+0x5", False), ("bottom+0x6", False),
    ]  # fmt: skip
    assert [f.address for f in backtrace(regs, stack.read, None)] == [f.address for f in frames]


def test_stacks_that_lead_around_end(stack):
    stack.put(stack.function("leaf", 1), STACK, STACK, STACK)
    assert len(stack.trace(stack.function("framed"), rbp=STACK - 8)) <= 3
    # A stack full of return addresses.
    stack.put(*[stack.function("leaf", 1)] * 4096)
    assert len(stack.trace(stack.function("leaf"))) == FRAMES_MAX
    assert stack.trace(stack.function("leaf"), rbp=1 << 63)[0] == "leaf"


def test_tables_full_of_anything(stack):
    """Whatever ORC tables hold, a trace ends."""
    symbols = stack.symbols
    start, end = symbols["__start_orc_unwind_ip"], symbols["__stop_orc_unwind"]
    stack.put(*[stack.function("leaf", 1)] * 512)
    started = time.process_time()
    for filler in (b"\xff", b"\x05", b"\x08\x00\x00\x00\x05\x02"):
        data = (filler * (end - start))[: end - start]
        stack.kernel.memory.write(start - symbols["_text"] + IMAGE_GPA, data)
        assert len(stack.trace(stack.function("leaf"), rbp=STACK)) <= FRAMES_MAX
    assert time.process_time() - started < 2


def test_a_stack_that_is_not_there(stack):
    regs = {"rip": stack.function("leaf"), "rsp": 0x1000, "rbp": 0}
    assert [f.symbol for f in backtrace(regs, stack.read, stack.symbols)] == ["leaf"]
