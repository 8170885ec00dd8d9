"""Code objects as C data, so that importing a module decodes nothing and allocates nothing.

CPython does the same to its own start-up modules (Tools/scripts/deepfreeze.py); the layout is that
of 3.11's headers (cpython/code.h, cpython/unicodeobject.h), and the C compiler checks it. Objects
are shared: a string, a tuple, a number that occurs twice is there once.
"""

from __future__ import annotations

import itertools
import types

HEADER = """\
#define Py_BUILD_CORE 1
#include <Python.h>
#include "internal/pycore_code.h"
#include "internal/pycore_gc.h"
#include "internal/pycore_runtime.h"
#include "internal/pycore_global_objects.h"

/* References are counted in static objects, too; they start with so many that none goes away. */
#define MANY 999999999
#define HEAD(type) { .ob_refcnt = MANY, .ob_type = &type }
#define VAR_HEAD(type, size) { .ob_base = HEAD(type), .ob_size = size }
#define STRING(number, size, text) \\
    static struct { PyASCIIObject head; char data[size + 1]; } s##number = \\
    {{ HEAD(PyUnicode_Type), size, -1, { .kind = 1, .compact = 1, .ascii = 1, .ready = 1 } }, text}
#define BYTES(number, size, text) \\
    static struct { PyObject_VAR_HEAD Py_hash_t ob_shash; char data[size + 1]; } b##number = \\
    { VAR_HEAD(PyBytes_Type, size), -1, text }
#define TUPLE(number, size) \\
    static struct { PyGC_Head unused; struct { PyObject_VAR_HEAD PyObject *item[size]; } t; } \\
    t##number = { {0}, { VAR_HEAD(PyTuple_Type, size),
#define LONG(number, digits, size) \\
    static struct { PyObject_VAR_HEAD digit ob_digit[digits]; } i##number = \\
    { VAR_HEAD(PyLong_Type, size),
#define FLOAT(number, value) static PyFloatObject f##number = { HEAD(PyFloat_Type), value }
#define OBJECT(name) ((PyObject *)&name)

/* Names must be interned before the code runs: the interpreter compares them by address. */
static int intern(PyCodeObject *code)
{
    Py_ssize_t i;
    if (_PyStaticCode_InternStrings(code) < 0)
        return -1;
    for (i = 0; i < PyTuple_GET_SIZE(code->co_consts); i++) {
        PyObject *item = PyTuple_GET_ITEM(code->co_consts, i);
        if (PyCode_Check(item) && intern((PyCodeObject *)item) < 0)
            return -1;
    }
    return 0;
}
"""
LOCAL, CELL, FREE = 0x20, 0x40, 0x80  # CO_FAST_* of pycore_code.h
RESUME = 151
DIGIT_BITS = 30
SMALL_INTS = range(-5, 257)


class NotStatic(Exception):
    """A constant that has no static form here."""


def quoted(data: bytes) -> str:
    """A C string literal."""
    plain = {34: '\\"', 92: "\\\\", 63: "\\?"}
    return '"' + "".join(
        [plain.get(b) or (chr(b) if 32 <= b < 127 else f"\\{b:03o}") for b in data]
    ) + '"'  # fmt: skip


class Writer:
    """Collects definitions; object() gives the C expression of a Python constant."""

    def __init__(self) -> None:
        self.lines = [HEADER]
        self._known: dict[object, str] = {}
        self._numbers = itertools.count()

    def module(self, name: str, code: types.CodeType) -> str:
        """Define a module's code; the name of the function that returns it."""
        top = self.object(code)
        function = "code_of_" + name.replace(".", "__")
        self.lines.append(
            f"PyObject *{function}(void) {{ PyObject *code = {top}; "
            "return intern((PyCodeObject *)code) < 0 ? NULL : Py_NewRef(code); }"
        )
        return function

    def object(self, value: object) -> str:
        """The C expression of a constant."""
        if value is None or value is True or value is False:
            return f"Py_{value}"
        if value is Ellipsis:
            return "Py_Ellipsis"
        if isinstance(value, types.CodeType):
            return self._code(value)
        key = (type(value), repr(value))
        if key not in self._known:
            self._known[key] = self._define(value, next(self._numbers))
        return self._known[key]

    def _define(self, value: object, number: int) -> str:
        if isinstance(value, str):
            return self._string(value, number)
        if isinstance(value, bytes):
            self.lines.append(f"BYTES({number}, {len(value)}, {quoted(value)});")
            return f"OBJECT(b{number})"
        if isinstance(value, int):
            return self._int(value, number)
        if isinstance(value, float):
            self.lines.append(f"FLOAT({number}, {value.hex()});")
            return f"OBJECT(f{number})"
        if isinstance(value, frozenset):
            # Only ever searched by `in`, for which a tuple does; no set can be made statically.
            return self.object(tuple(sorted(value, key=repr)))
        if isinstance(value, tuple):
            return self._tuple(value, number)
        raise NotStatic(f"{value!r}")

    def _string(self, value: str, number: int) -> str:
        if not value.isascii():
            raise NotStatic(f"{value!r}")
        self.lines.append(f"STRING({number}, {len(value)}, {quoted(value.encode())});")
        return f"OBJECT(s{number})"

    def _int(self, value: int, number: int) -> str:
        if value in SMALL_INTS:
            return f"OBJECT(_Py_SINGLETON(small_ints)[_PY_NSMALLNEGINTS + {value}])"
        digits = []
        rest = abs(value)
        while rest:
            digits.append(str(rest & (1 << DIGIT_BITS) - 1))
            rest >>= DIGIT_BITS
        size = -len(digits) if value < 0 else len(digits)
        self.lines.append(f"LONG({number}, {len(digits)}, {size}) {{ {', '.join(digits)} }} }};")
        return f"OBJECT(i{number})"

    def _tuple(self, value: tuple[object, ...], number: int) -> str:
        if not value:
            return "OBJECT(_Py_SINGLETON(tuple_empty))"
        items = ", ".join([self.object(item) for item in value])
        self.lines.append(f"TUPLE({number}, {len(value)}) {{ {items} }} }} }};")
        return f"OBJECT(t{number}.t)"

    def _code(self, code: types.CodeType) -> str:
        kinds: dict[str, int] = {}
        for names, kind in (
            (code.co_varnames, LOCAL), (code.co_cellvars, CELL), (code.co_freevars, FREE)
        ):  # fmt: skip
            for name in names:
                kinds[name] = kinds.get(name, 0) | kind
        plain_cells = [name for name in code.co_cellvars if name not in code.co_varnames]
        opcodes = code.co_code[::2]
        fields = {
            "co_consts": self._constants(code.co_consts),
            "co_names": self.object(code.co_names),
            "co_exceptiontable": self.object(code.co_exceptiontable),
            "co_flags": code.co_flags,
            "co_warmup": "QUICKENING_INITIAL_WARMUP_VALUE",
            "co_argcount": code.co_argcount,
            "co_posonlyargcount": code.co_posonlyargcount,
            "co_kwonlyargcount": code.co_kwonlyargcount,
            "co_stacksize": code.co_stacksize,
            "co_firstlineno": code.co_firstlineno,
            "co_nlocalsplus": len(kinds),
            "co_nlocals": code.co_nlocals,
            "co_nplaincellvars": len(plain_cells),
            "co_ncellvars": len(code.co_cellvars),
            "co_nfreevars": len(code.co_freevars),
            "co_localsplusnames": self.object(tuple(kinds)),
            "co_localspluskinds": self.object(bytes(kinds.values())),
            "co_filename": self.object(code.co_filename),
            "co_name": self.object(code.co_name),
            "co_qualname": self.object(code.co_qualname),
            "co_linetable": self.object(code.co_linetable),
            "_co_firsttraceable": opcodes.index(RESUME),
            "co_code_adaptive": quoted(code.co_code),
        }
        name = f"c{len(self.lines)}"
        body = ", ".join([f".{field} = {value}" for field, value in fields.items()])
        self.lines.append(
            f"static struct _PyCode_DEF({len(code.co_code)}) {name} = "
            f"{{ .ob_base = VAR_HEAD(PyCode_Type, {len(code.co_code) // 2}), {body} }};"
        )
        return f"OBJECT({name})"

    def _constants(self, value: tuple[object, ...]) -> str:
        """A tuple that may hold code objects, which are never shared."""
        if not any(isinstance(item, types.CodeType) for item in value):
            return self.object(value)
        return self._tuple(value, next(self._numbers))
