"""Conditions of breakpoints: a function of the vCPU, or an expression of its registers as text."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Any

from vmm.debug.registers import GENERAL

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.debug.cpu import Cpu

ALLOWED = (
    ast.Expression, ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.Not, ast.USub, ast.Invert,
    ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.BitAnd, ast.BitOr, ast.BitXor, ast.LShift,
    ast.RShift, ast.Mod, ast.FloorDiv, ast.Compare, ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt,
    ast.GtE, ast.In, ast.NotIn, ast.Tuple, ast.Name, ast.Load, ast.Constant,
)  # fmt: skip


def compile_condition(condition: Any) -> Callable[[Cpu], Any] | None:
    """What ``condition`` (None, a function, or text such as ``"rdi == 3"``) means.

    ValueError names what is not allowed in a text: names of registers, integers and operators are.
    """
    if condition is None or callable(condition):
        return condition  # type: ignore[no-any-return]
    if not isinstance(condition, str):
        raise ValueError(f"condition={condition!r}: give a function of the CPU, or text")
    try:
        tree = ast.parse(condition.strip(), mode="eval")
    except SyntaxError as error:
        raise ValueError(f"condition {condition!r}: {error.msg}") from None
    for node in ast.walk(tree):
        name = isinstance(node, ast.Name) and node.id not in GENERAL
        constant = isinstance(node, ast.Constant) and not isinstance(node.value, int)
        if not isinstance(node, ALLOWED) or name or constant:
            raise ValueError(
                f"condition {condition!r}: {ast.unparse(node)!r} is not possible; write registers "
                f"({', '.join(GENERAL)}), integers and operators, or give a function"
            )
    code = compile(tree, "<condition>", "eval")
    return lambda cpu: eval(code, {"__builtins__": {}}, cpu.regs.as_dict())
