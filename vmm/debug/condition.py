"""Conditions of breakpoints: a function of the vCPU, or an expression of its registers as text.

A text becomes a small program that native code evaluates (vmm/_native/kvm/condition.pyx). All
values are unsigned, of 64 bits: arithmetic wraps, a shift by 64 or more gives 0, and ``-1`` is
``0xffffffffffffffff``.
"""

from __future__ import annotations

import ast
from functools import partial
from typing import TYPE_CHECKING, Any

from vmm._native.kvm.condition import OPERATIONS, STEPS_MAX, Condition
from vmm.debug.registers import GENERAL, MASK, SYSTEM

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmm.debug.cpu import Cpu

TEXT_MAX = 4000
NAMES = {name: number for number, name in enumerate((*GENERAL, *SYSTEM))}
# What an access is, for a hook's: the value is 0 of a read.
ACCESS = {name: len(NAMES) + number for number, name in enumerate(("address", "value", "size"))}
TWO: dict[type[ast.AST], str] = {
    ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.BitAnd: "&", ast.BitOr: "|", ast.BitXor: "^",
    ast.LShift: "<<", ast.RShift: ">>", ast.Mod: "%", ast.FloorDiv: "//", ast.Eq: "==",
    ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=",
}  # fmt: skip
ONE: dict[type[ast.AST], str] = {
    ast.Not: "not", ast.USub: "negate", ast.Invert: "invert",
}  # fmt: skip
ORDERED = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)


class Expression:
    """A condition given as ``text``. ``native`` evaluates it; called with a Cpu, so does it.

    With ``access`` it may name what an access of the guest's is, and belongs to a hook.
    """

    def __init__(self, text: str, access: bool = False) -> None:
        self.text = text
        self.native = Condition(_Program(text, {**NAMES, **ACCESS} if access else NAMES).steps)

    def __call__(self, cpu: Cpu) -> bool:
        """Whether it holds there; ZeroDivisionError for a division by zero."""
        regs = cpu.regs.as_dict()
        values = [regs[name] for name in GENERAL]
        if self.native.wants_system:
            values += [cpu.sregs[name] for name in SYSTEM]
        try:
            return self.native.evaluate(values)
        except ZeroDivisionError:
            raise ZeroDivisionError(f"condition {self.text!r}: a division by zero") from None

    def __repr__(self) -> str:
        return repr(self.text)


def compile_condition(condition: Any) -> Callable[[Cpu], Any] | None:
    """What ``condition`` (None, a function, or text such as ``"rdi == 3"``) means.

    ValueError names what is not allowed in a text: names of registers, integers and operators are.
    """
    if condition is None or callable(condition):
        return condition  # type: ignore[no-any-return]
    if not isinstance(condition, str):
        raise ValueError(f"condition={condition!r}: give a function of the CPU, or text")
    return Expression(condition)


class _Program:
    """The steps of one text. Each method puts one value on the stack."""

    def __init__(self, text: str, names: dict[str, int]) -> None:
        self._names = names
        self.steps: list[tuple[int, int]] = []
        if len(text) > TEXT_MAX:
            raise ValueError(f"a condition of {len(text)} characters: at most {TEXT_MAX}")
        self._shown = repr(text if len(text) <= 100 else f"{text[:100]}...")
        try:
            self._value(ast.parse(text.strip(), mode="eval").body)
            Condition(self.steps)
        except SyntaxError as error:
            raise ValueError(f"condition {self._shown}: {error.msg}") from None
        except (RecursionError, MemoryError):
            raise ValueError(f"condition {self._shown}: too deep; give a function") from None
        except ValueError as error:
            raise ValueError(f"condition {self._shown}: {error}") from None

    def _put(self, operation: str, operand: int = 0) -> None:
        # Asked here: what is compared with several values is computed for each.
        if len(self.steps) == STEPS_MAX:
            raise ValueError(f"more than {STEPS_MAX} steps; give a function")
        self.steps.append((OPERATIONS[operation], operand))

    def _value(self, node: ast.AST) -> None:
        if isinstance(node, ast.Name) and node.id in self._names:
            self._put("register", self._names[node.id])
        elif isinstance(node, ast.Constant) and isinstance(node.value, int):
            self._constant(node.value)
        elif isinstance(node, ast.UnaryOp) and type(node.op) in ONE:
            self._value(node.operand)
            self._put(ONE[type(node.op)])
        elif isinstance(node, ast.BinOp) and type(node.op) in TWO:
            self._value(node.left)
            self._value(node.right)
            self._put(TWO[type(node.op)])
        elif isinstance(node, ast.BoolOp):
            parts = [partial(self._value, part) for part in node.values]
            self._chain("and then" if isinstance(node.op, ast.And) else "or else", parts)
        elif isinstance(node, ast.Compare):
            self._compare(node)
        else:
            raise _impossible(node, self._names)

    def _constant(self, value: int) -> None:
        if value > MASK:
            raise ValueError(f"{value:#x} does not fit into 64 bits")
        self._put("constant", value)

    def _chain(self, jump: str, parts: Sequence[Callable[[], None]]) -> None:
        """Each part in turn, until one decides; its value is that of all."""
        jumps = []
        for part in parts[:-1]:
            part()
            jumps.append(len(self.steps))
            self._put(jump)
        parts[-1]()
        for place in jumps:
            self.steps[place] = (OPERATIONS[jump], len(self.steps))

    def _compare(self, node: ast.Compare) -> None:
        """``a < b < c`` is ``a < b and b < c``."""
        values = [node.left, *node.comparators]
        parts = [
            partial(self._pair, a, op, b)
            for a, op, b in zip(values, node.ops, values[1:], strict=False)
        ]
        self._chain("and then", parts)

    def _pair(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> None:
        if isinstance(op, ast.In | ast.NotIn):
            self._member(left, right)
            if isinstance(op, ast.NotIn):
                self._put("not")
            return
        if type(op) not in TWO:
            raise ValueError(f"{ast.unparse(left)} {type(op).__name__} ... is not possible: use ==")
        if isinstance(op, ORDERED):
            _refuse_signs(left, op, right)
        self._value(left)
        self._value(right)
        self._put(TWO[type(op)])

    def _member(self, left: ast.expr, right: ast.expr) -> None:
        if not isinstance(right, ast.Tuple | ast.List | ast.Set) or not right.elts:
            raise ValueError(f"{ast.unparse(right)} behind `in`: write values in parentheses")
        parts = [partial(self._pair, left, ast.Eq(), one) for one in right.elts]
        self._chain("or else", parts)


def _refuse_signs(left: ast.expr, op: ast.cmpop, right: ast.expr) -> None:
    """Order is that of unsigned integers: what can only be meant with signs is none."""
    negative = any(isinstance(v, ast.UnaryOp) and isinstance(v.op, ast.USub) for v in (left, right))
    zero = isinstance(right, ast.Constant) and right.value == 0
    if negative or (zero and isinstance(op, ast.Lt)):
        raise ValueError(
            "registers are unsigned in a condition, none is below 0: for a sign look at its bit "
            "(rax >> 63)"
        )


def _impossible(node: ast.AST, names: dict[str, int]) -> ValueError:
    return ValueError(
        f"{ast.unparse(node)!r} is not possible; write registers ({', '.join(names)}), integers "
        "and operators, or give a function"
    )
