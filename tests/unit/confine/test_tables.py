"""The filters: each line of the tables both ways, and against what libseccomp makes of them."""

from __future__ import annotations

import ctypes
import os
import struct
import tempfile
from itertools import combinations

import pytest

from tests.support.bpf import verdict
from vmm._native.host import confine
from vmm.confine import assembler
from vmm.confine.programs import PROGRAMS
from vmm.confine.tables import ALLOW, TABLES, WORD, Arg, Line

NUMBERS = assembler.call_numbers()
KINDS = dict(zip(TABLES, PROGRAMS, strict=True))
LINES = [
    pytest.param(kind, line, id=f"{kind}-{line.call}-{at}")
    for kind, table in TABLES.items()
    for at, line in enumerate(table)
]
TRAP = assembler.RET_TRAP
# Of an instance's, whatever thread: no program, no other process, no module, no network.
NEVER = (
    "execve", "execveat", "fork", "vfork", "ptrace", "process_vm_readv", "process_vm_writev", "bpf",
    "userfaultfd", "mount", "umount2", "fsopen", "fsmount", "move_mount", "pivot_root", "chroot",
    "keyctl", "add_key", "request_key", "kill", "tkill", "rt_sigqueueinfo", "pidfd_send_signal",
    "pidfd_getfd", "setns", "unshare", "init_module", "finit_module", "kexec_load",
    "perf_event_open", "setuid", "setresuid", "capset", "iopl", "ioperm", "modify_ldt",
    "personality", "landlock_restrict_self", "socketpair", "link", "symlink", "mknod",
    "chmod", "chown",
)  # fmt: skip
AF_INET, AF_INET6, AF_NETLINK, AF_VSOCK = 2, 10, 16, 40


def arguments(line: Line) -> list[int]:
    values = [0] * 6
    for arg in line.args:
        values[arg.position] = arg.value
    return values


def neighbour(line: Line, table: tuple[Line, ...]) -> list[int] | None:
    """Arguments that hold for no line of this call; None when there are none."""
    same = [other for other in table if other.call == line.call]
    places = [(arg.position, bit) for arg in line.args for bit in range(32)]
    for changes in [*combinations(places, 1), *combinations(places, 2)]:
        values = arguments(line)
        for position, bit in changes:
            values[position] ^= 1 << bit
        if not any(holds(other, values) for other in same):
            return values
    return None


def holds(line: Line, values: list[int]) -> bool:
    return all(values[arg.position] & WORD & arg.mask == arg.value for arg in line.args)


def expected(table: tuple[Line, ...], call: str, values: list[int]) -> int:
    """What the table says, by the words of its docstring alone."""
    same = [line for line in table if line.call == call]
    for line in sorted(same, key=lambda line: not line.args):
        if holds(line, values):
            answer = line.answer
            return assembler.RET_ALLOW if answer == ALLOW else assembler.RET_ERRNO | answer
    return TRAP


def test_the_programs_are_those_of_the_tables():
    assert assembler.PROGRAMS.read_text() == assembler.source(), "python -m vmm.confine.assembler"
    assert len(PROGRAMS) == confine.KINDS


def test_the_kinds_are_those_of_the_native_half():
    text = (assembler.NAMES.parents[1] / "host/confine.pxd").read_text()
    for number, kind in enumerate(TABLES):
        assert f"KIND_{kind.upper()} = {number}\n" in text


@pytest.mark.parametrize(("kind", "line"), LINES)
def test_each_line_both_ways(kind, line):
    program, table = KINDS[kind], TABLES[kind]
    number = NUMBERS[line.call]
    found = verdict(program, number, arguments(line))
    assert found == expected(table, line.call, arguments(line)) != TRAP
    if line.args:
        values = neighbour(line, table)
        unconditional = any(not other.args for other in table if other.call == line.call)
        assert (values is None) == unconditional
        if values is not None:
            assert verdict(program, number, values) == TRAP


@pytest.mark.parametrize("kind", TABLES)
def test_what_stands_in_no_line_is_trapped(kind):
    known = {NUMBERS[line.call] for line in TABLES[kind]}
    for number in range(max(NUMBERS.values()) + 50):
        if number not in known:
            assert verdict(KINDS[kind], number) == TRAP, number


@pytest.mark.parametrize("kind", TABLES)
def test_other_architectures_are_trapped(kind):
    i386, x32 = 0x40000003, 0x40000000
    for number in range(max(NUMBERS.values()) + 1):
        assert verdict(KINDS[kind], number, arch=i386) == TRAP
        assert verdict(KINDS[kind], number | x32) == TRAP


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize("call", NEVER)
def test_these_no_thread_makes(kind, call):
    for first in (0, 1, os.getpid(), WORD):
        assert verdict(KINDS[kind], NUMBERS[call], [first]) == TRAP


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize("family", [AF_INET, AF_INET6, AF_NETLINK, AF_VSOCK])
def test_no_network(kind, family):
    assert verdict(KINDS[kind], NUMBERS["socket"], [family, 1, 0]) != assembler.RET_ALLOW


@pytest.mark.parametrize("kind", TABLES)
def test_no_writable_code(kind):
    """Neither memory that is code, nor code that can be written."""
    for call in ("mmap", "mprotect"):
        for prot in (4, 6, 7):
            for flags in (0x22, 0x21):
                values = [0, 4096, prot, flags, 3, 0]
                if call == "mmap" and flags == 0x21 and prot == 4:
                    continue
                assert verdict(KINDS[kind], NUMBERS[call], values) == TRAP
    assert verdict(KINDS[kind], NUMBERS["mmap"], [0, 4096, 7, 2, 3, 0]) == TRAP


@pytest.mark.parametrize("kind", [kind for kind in TABLES if kind != "control"])
def test_control_may_what_the_threads_may_that_it_makes(kind):
    """They have its filter as well: what it refused, they could not do."""
    for line in TABLES[kind]:
        if line.answer == ALLOW:
            found = verdict(KINDS["control"], NUMBERS[line.call], arguments(line))
            assert found == assembler.RET_ALLOW or kind == "console", line


class Compare(ctypes.Structure):
    """struct scmp_arg_cmp."""

    _fields_ = (
        ("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64),
        ("b", ctypes.c_uint64),
    )  # fmt: skip


MASKED_EQUAL = 7


def by_libseccomp(table: tuple[Line, ...]) -> bytes:
    """The same table, compiled by libseccomp."""
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        pytest.skip("libseccomp.so.2 is not here")
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_init.argtypes = [ctypes.c_uint32]
    context = ctypes.c_void_p(library.seccomp_init(TRAP))
    # A line without arguments takes all: others of that call say nothing then.
    plain = {line.call for line in table if not line.args}
    for line in table:
        if line.args and line.call in plain:
            continue
        action = assembler.RET_ALLOW if line.answer == ALLOW else assembler.RET_ERRNO | line.answer
        tests = (Compare * len(line.args))(
            *[Compare(arg.position, MASKED_EQUAL, arg.mask, arg.value) for arg in line.args]
        )
        rc = library.seccomp_rule_add_array(
            context, ctypes.c_uint32(action), NUMBERS[line.call], len(line.args), tests
        )
        assert rc in (0, -17), (line, rc)  # the same line twice
    with tempfile.TemporaryFile() as file:
        assert library.seccomp_export_bpf(context, file.fileno()) == 0
        file.seek(0)
        return file.read()


def probes(table: tuple[Line, ...], call: str) -> list[list[int]]:
    """Arguments around every number that a line of this call compares."""
    found = [[0] * 6, [WORD] * 6]
    for line in table:
        if line.call == call:
            base = arguments(line)
            found.append(base)
            for arg in line.args:
                for change in (1, 1 << 31, 0x100, 0xAE00, 4, 2, 0x20):
                    values = list(base)
                    values[arg.position] ^= change
                    found.append(values)
    return found


@pytest.mark.parametrize("kind", TABLES)
def test_libseccomp_makes_the_same_of_the_table(kind):
    theirs = by_libseccomp(TABLES[kind])
    for call, number in NUMBERS.items():
        for values in probes(TABLES[kind], call):
            assert verdict(KINDS[kind], number, values) == verdict(theirs, number, values), (
                call, [hex(value) for value in values],
            )  # fmt: skip


def test_an_argument_is_compared_as_far_as_its_mask_goes():
    line = Line("mmap", "", (Arg(2, 4, 6), Arg(3, 0, 0x20)))
    steps = assembler.steps_of([line])
    program = b"".join(struct.pack("<HBBI", *step) for step in steps)
    number = NUMBERS["mmap"]
    assert verdict(program, number, [0, 0, 5, 1]) == assembler.RET_ALLOW
    assert verdict(program, number, [0, 0, 6, 1]) == TRAP
    assert verdict(program, number, [0, 0, 5, 0x21]) == TRAP
