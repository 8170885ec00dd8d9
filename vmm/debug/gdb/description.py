"""The target description: which registers there are, as XML that gdb reads.

The architecture is x86-64 in every mode of the processor: a description cannot change while gdb is
attached. Source: gdb's manual, appendix G (Target Descriptions), i386 Features.
"""

from __future__ import annotations

from vmm.debug.gdb.registers import CORE, REGISTERS, SSE

EFLAGS = (
    (0, "CF"), (1, ""), (2, "PF"), (4, "AF"), (6, "ZF"), (7, "SF"), (8, "TF"), (9, "IF"),
    (10, "DF"), (11, "OF"), (14, "NT"), (16, "RF"), (17, "VM"), (18, "AC"), (19, "VIF"),
    (20, "VIP"), (21, "ID"),
)  # fmt: skip
MXCSR = ("IE", "DE", "ZE", "OE", "UE", "PE", "DAZ", "IM", "DM", "ZM", "OM", "UM", "PM")
VECTORS = (
    ("v8_bfloat16", "bfloat16", 8), ("v4_float", "ieee_single", 4), ("v2_double", "ieee_double", 2),
    ("v16_int8", "int8", 16), ("v8_int16", "int16", 8), ("v4_int32", "int32", 4),
    ("v2_int64", "int64", 2), ("uint128", "uint128", 0),
)  # fmt: skip
FLUSH_TO_ZERO = 15


def _flags(name: str, fields: list[tuple[int, str]]) -> list[str]:
    rows = [f'<field name="{field}" start="{bit}" end="{bit}"/>' for bit, field in fields]
    return [f'<flags id="{name}" size="4">', *rows, "</flags>"]


def _vectors() -> list[str]:
    rows = [f'<vector id="{n}" type="{t}" count="{count}"/>' for n, t, count in VECTORS if count]
    rows.append('<union id="vec128">')
    rows += [f'<field name="{name}" type="{name}"/>' for name, _, _ in VECTORS]
    return [*rows, "</union>"]


TYPES = {
    CORE: _flags("i386_eflags", list(EFLAGS)),
    SSE: _vectors()
    + _flags("i386_mxcsr", [*enumerate(MXCSR), (FLUSH_TO_ZERO, "FZ")]),
}  # fmt: skip


def target_xml() -> bytes:
    """The whole description."""
    lines = [
        '<?xml version="1.0"?>', '<!DOCTYPE target SYSTEM "gdb-target.dtd">', "<target>",
        "<architecture>i386:x86-64</architecture>",
    ]  # fmt: skip
    for feature in dict.fromkeys([register.feature for register in REGISTERS]):
        lines += [f'<feature name="{feature}">', *TYPES.get(feature, [])]
        lines += [
            f'<reg name="{r.name}" bitsize="{8 * r.bytes}" type="{r.type}" regnum="{number}"/>'
            for number, r in enumerate(REGISTERS)
            if r.feature == feature
        ]
        lines.append("</feature>")
    return "\n".join([*lines, "</target>", ""]).encode()
