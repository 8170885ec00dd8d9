"""`monitor` commands: what gdb has no words of its own for. The target is a whole machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm.debug.gdb.registers import number_of

if TYPE_CHECKING:
    from vmm.debug.gdb.target import GdbTarget

HELP = """\
help                  this
cr0 ... cr8, efer, rax, fs_base ... [VALUE]
                      a register of the current thread, shown or set
info regs             general and system registers, with segments and tables
info cpus             every vCPU: what it does and where it stands
msr INDEX [VALUE]     a model-specific register, shown or set
translate ADDRESS     the guest physical address behind a linear one
phys [on|off]         whether gdb's addresses are guest physical ones
reset                 is not possible here
Numbers are decimal, or hexadecimal with 0x.
"""
SWITCH = {"on": True, "off": False}


def answer(target: GdbTarget, thread: int, line: str) -> str:
    """What a command says; ValueError, KeyError or OSError is what it says when it cannot."""
    word, *arguments = line.split() or ["help"]
    command = COMMANDS.get(word)
    if command is not None:
        return command(target, thread, arguments)
    if number_of(word) is not None:
        return _register(target, thread, word, arguments)
    return f"there is no command {word!r}: monitor help\n"


def _number(text: str) -> int:
    try:
        value = int(text, 0)
    except ValueError:
        raise ValueError(f"{text[:40]!r} is no number (0x1f or 31)") from None
    if not 0 <= value < 1 << 64:
        raise ValueError(f"{text[:40]} does not fit into 64 bits")
    return value


def _help(target: GdbTarget, thread: int, arguments: list[str]) -> str:
    return HELP


def _register(target: GdbTarget, thread: int, name: str, arguments: list[str]) -> str:
    file, number = target.registers(thread), number_of(name)
    assert number is not None
    size = len(file.read(number))
    if arguments:
        value = _number(arguments[0])
        if value >= 1 << 8 * size:
            raise ValueError(f"{arguments[0]} does not fit into the {8 * size} bits of {name}")
        file.write(number, value.to_bytes(size, "little"))
    return f"{name} {int.from_bytes(file.read(number), 'little'):#x}\n"


def _info(target: GdbTarget, thread: int, arguments: list[str]) -> str:
    what = arguments[0] if arguments else ""
    if what in ("regs", "registers"):
        cpu = target.cpu(thread)
        return f"{target.describe(thread)}\n{cpu.regs!r}\n{cpu.sregs!r}\n"
    if what == "cpus":
        rows = [
            f"thread {n}: {target.describe(n)} at {target.cpu(n).address:#x}"
            for n in range(1, target.threads + 1)
        ]
        return "\n".join([*rows, ""])
    return "info what? regs or cpus\n"


def _msr(target: GdbTarget, thread: int, arguments: list[str]) -> str:
    if not arguments:
        return "msr INDEX [VALUE], for example: msr 0xc0000080\n"
    index, msrs = _number(arguments[0]), target.cpu(thread).msrs
    if index >= 1 << 32:
        raise ValueError(f"MSR {index:#x}: an index has 32 bits")
    if len(arguments) > 1:
        msrs[index] = _number(arguments[1])
    return f"msr {index:#x} {msrs[index]:#x}\n"


def _translate(target: GdbTarget, thread: int, arguments: list[str]) -> str:
    if not arguments:
        return "translate ADDRESS\n"
    address = _number(arguments[0])
    gpa = target.cpu(thread).translate(address)
    return f"{address:#x} is {'not mapped' if gpa is None else f'at gpa {gpa:#x}'}\n"


def _phys(target: GdbTarget, thread: int, arguments: list[str]) -> str:
    if arguments and arguments[0] not in SWITCH:
        return "phys on, or phys off\n"
    if arguments:
        target.physical = SWITCH[arguments[0]]
    return f"addresses are {'guest physical' if target.physical else 'linear'}\n"


def _reset(target: GdbTarget, thread: int, arguments: list[str]) -> str:
    return (
        "a reset is not possible from here: let the guest reboot itself, or end it (kill) and "
        "start another one\n"
    )


COMMANDS = {
    "help": _help, "info": _info, "msr": _msr, "translate": _translate, "phys": _phys,
    "reset": _reset, "system_reset": _reset,
}  # fmt: skip
