"""Conditions of breakpoints: what a text means, and that native code and Python agree on it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm._native.kvm.condition import DEPTH_MAX, OPERATIONS, STEPS_MAX, Condition
from vmm.debug.condition import TEXT_MAX, Expression, compile_condition
from vmm.debug.registers import GENERAL, SYSTEM

MASK = (1 << 64) - 1


class FakeCpu:
    """Its registers are 0 but for some."""

    def __init__(self, **values):
        self.regs = self
        self.sregs = dict.fromkeys(SYSTEM, 0) | values
        self.values = dict.fromkeys(GENERAL, 0) | values

    def as_dict(self):
        return self.values


@pytest.mark.parametrize(
    ("text", "held"),
    [
        ("rax == 3", True),
        ("rax & 1 and not rbx", True),
        ("rax in (1, 2)", False),
        ("rax not in (1, 2)", True),
        ("rax << 2 > 11", True),
        ("1 < rax <= 3 < 4", True),
        ("1 < rax < 3 < 4", False),
        ("(rbx or rax) == 3", True),
        ("cr3 == 0x5000", True),
        ("rsi >> 63", True),
        ("rsi == -1", True),
        # Unsigned, of 64 bits, whatever comes out.
        ("rsi > 5", True),
        ("-rax == 0xfffffffffffffffd", True),
        ("rbx - 1 == 0xffffffffffffffff", True),
        ("rsi + 1 == 0", True),
        ("rsi * rsi == 1", True),
        ("rsi // 2 == 0x7fffffffffffffff", True),
        ("-7 % 4 == 1", True),
        ("~rbx == rsi", True),
        ("1 << 64 == 0 and 1 << 63 and not rsi >> 64 and not rsi << rsi", True),
        # What decides nothing any more is not looked at.
        ("rbx != 0 and 5 // rbx == 1", False),
        ("rax == 3 or 5 % rbx", True),
        ("True", True),
    ],
)
def test_what_a_text_means(text, held):
    cpu = FakeCpu(rax=3, rsi=MASK, cr3=0x5000)
    assert compile_condition(text)(cpu) is held


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("__import__('os')", "__import__.* is not possible; write registers"),
        ("eip == 1", "'eip' is not possible"),
        ("rax == 'a'", "is not possible"),
        ("rax == 1.5", "is not possible"),
        ("rax.real", "is not possible"),
        ("rax ** 2", "is not possible"),
        ("rax ==", "invalid syntax"),
        ("rax\0", "null bytes"),
        ("", "invalid syntax"),
        ("rax is 3", "use =="),
        ("rax in 5", "values in parentheses"),
        ("rax in ()", "values in parentheses"),
        ("(rax, rbx)", "is not possible"),
        ("rax == 1 << 64 or rax == 0x10000000000000000", "does not fit into 64 bits"),
        ("rax < 0", "unsigned"),
        ("rax >= -5", "unsigned"),
        (5, "condition=5"),
        ("rax" + " " * TEXT_MAX, "characters: at most"),
        ("(" * 500 + "rax" + ")" * 500, "too many nested parentheses"),
        ("~" * 3000 + "rax", "too deep|too complex|steps"),
        ("+".join(["rax"] * 400), "more than 512 steps"),
        ("rax+(" * 60 + "1" + ")" * 60, "more than 32 values on the stack"),
        ("(" * 90 + "rax" + " in (1, 2))" * 90, "more than 512 steps"),
    ],
)
def test_a_text_that_is_none(text, words):
    with pytest.raises(ValueError, match=words):
        compile_condition(text)


def test_a_division_by_zero_names_the_condition():
    with pytest.raises(ZeroDivisionError, match="condition 'rax // rbx': a division by zero"):
        compile_condition("rax // rbx")(FakeCpu(rax=1))


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ([], "0 steps"),
        ([("constant", 1)] * (STEPS_MAX + 1), "513 steps"),
        ([("constant", 1)] * (DEPTH_MAX + 1), "values on the stack"),
        ([("constant", 1)] * 2, "leaves 2 values"),
        ([("constant", 1 << 64)], "no operation"),
        ([("constant", -1)], "no operation"),
        ([(99, 0)], "no operation 99"),
        ([(-1, 0)], "no operation -1"),
        ([("register", 28)], "no register 28"),
        ([("+", 0)], "too few"),
        ([("not", 0)], "too few"),
        ([("constant", 1), ("or else", 1), ("constant", 1)], "a jump to 1"),
        ([("constant", 1), ("or else", 4), ("constant", 1)], "a jump to 4"),
        ([("constant", 1), ("or else", 0), ("constant", 1)], "a jump to 0"),
        ([("or else", 1)], "too few"),
        # A step that is reached with one value on the stack, and with two.
        (
            [("constant", 1), ("constant", 1), ("or else", 4), ("not", 0), ("not", 0)],
            "reached with 2 and 1",
        ),
    ],
)
def test_a_program_that_is_none(program, words):
    steps = [(OPERATIONS.get(code, code), operand) for code, operand in program]
    with pytest.raises(ValueError, match=words):
        Condition(steps)


REGISTERS = st.sampled_from([*GENERAL, *SYSTEM])
CONSTANTS = st.one_of(
    st.integers(0, 70), st.integers(0, MASK), st.sampled_from([0, 1, 63, 64, MASK, 1 << 63])
).map(str)
ARITHMETIC = ("+", "-", "*", "//", "%", "&", "|", "^", "<<", ">>")
COMPARISONS = ("==", "!=", "<", "<=", ">", ">=")


def combined(inner):
    pairs = st.tuples(inner, st.sampled_from([*ARITHMETIC, "and", "or"]), inner)
    chains = st.tuples(
        inner, st.sampled_from(COMPARISONS), inner, st.sampled_from(COMPARISONS), inner
    )
    return st.one_of(
        pairs.map("({0[0]} {0[1]} {0[2]})".format),
        chains.map("({0[0]} {0[1]} ({0[2]}) {0[3]} ({0[4]}))".format),
        st.tuples(inner, st.lists(inner, min_size=1, max_size=3)).map(
            lambda t: f"({t[0]} in ({', '.join(t[1])},))"
        ),
        inner.map("(not {})".format),
        inner.map("(0 + ~{})".format),
        inner.map("(0 + -{})".format),
    )


class Word(int):
    """An unsigned integer of 64 bits, in Python."""

    def __new__(cls, value):
        return super().__new__(cls, value & MASK)


def _wrapped(name):
    def operation(self, *others):
        if name in ("__lshift__", "__rshift__") and others[0] >= 64:
            return Word(0)
        return Word(getattr(int, name)(self, *others))

    return operation


for _name in (
    "add", "sub", "mul", "floordiv", "mod", "and", "or", "xor", "lshift", "rshift", "neg", "invert",
):  # fmt: skip
    setattr(Word, f"__{_name}__", _wrapped(f"__{_name}__"))


def in_python(text, values):
    """What Python makes of the text: every name and number a Word."""
    import ast

    class Words(ast.NodeTransformer):
        def visit_Constant(self, node):
            return ast.Call(ast.Name("Word", ast.Load()), [node], [])

        def visit_UnaryOp(self, node):
            self.generic_visit(node)
            return ast.Call(ast.Name("Word", ast.Load()), [node], [])

        def visit_Compare(self, node):
            self.generic_visit(node)
            return ast.Call(ast.Name("Word", ast.Load()), [node], [])

    tree = ast.fix_missing_locations(Words().visit(ast.parse(text, mode="eval")))
    words = {name: Word(value) for name, value in values.items()}
    try:
        return bool(eval(compile(tree, "<test>", "eval"), {"Word": Word}, words))
    except ZeroDivisionError:
        return None


@given(
    text=st.recursive(st.one_of(REGISTERS, CONSTANTS), combined, max_leaves=12),
    values=st.lists(st.one_of(st.integers(0, 70), st.integers(0, MASK)), min_size=25, max_size=25),
)
def test_native_code_and_python_agree(text, values):
    names = dict(zip([*GENERAL, *SYSTEM], values, strict=True))
    # In Python all values behind `in` are made first, here until one is equal.
    try:
        expression = Expression(text)
    except ValueError as error:
        assert "steps" in str(error) or "unsigned" in str(error), text
        return
    wanted = in_python(text, names)
    try:
        found = expression.native.evaluate(values)
    except ZeroDivisionError:
        found = None
    if wanted is not None or " in " not in text:
        assert found is wanted, text
