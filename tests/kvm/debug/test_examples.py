"""The examples that tell something of any guest, each with a tiny one."""

from __future__ import annotations

import ast
import importlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy  # noqa: F401  # its threads are there before a test counts them
import pytest
from matplotlib.figure import Figure

import vmm
from tests.support.elf_builder import LOAD_GPA, build_elf
from tests.support.guest_asm import RESULT_GPA, STACK_TOP_GPA, Program
from tests.support.speed import patience
from tests.support.tiny_guest import tiny_guest
from vmm import layout
from vmm.debug.abilities import ABILITIES

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
TICKS_A_SECOND = 3_579_545
FOR_EVER = "ebfe"
# KVM cannot emulate it: an FPU instruction on an address where no RAM is.
CRASH = "d935000000d0 f4"


@pytest.fixture(scope="module", autouse=True)
def fonts():
    """matplotlib keeps the files of its fonts open: before a test counts what is."""
    figure = Figure()
    figure.subplots().set(title="words", xlabel="s")
    figure.savefig(io.BytesIO())


@pytest.fixture
def example(monkeypatch, tmp_path):
    """Imports an example by name; what it leaves is in tmp_path."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.chdir(tmp_path)
    return importlib.import_module


@pytest.fixture
def kernel(tmp_path):
    def write(program: Program) -> str:
        path = tmp_path / "guest.elf"
        path.write_bytes(build_elf(bytes(program.code)))
        return str(path)

    return write


def powered_off(program: Program) -> Program:
    program.power_off()
    return program


def says(words: bytes, times: int = 1, pause: float = 0.0) -> Program:
    program = Program()
    for _ in range(times):
        program.out_string(0x3F8, words)
        if pause:
            program.wait_ticks(layout.PM_TIMER_PORT, int(TICKS_A_SECOND * pause))
    return program


def test_trace_a_boot(example, kernel, tmp_path, capsys):
    assert example("trace_a_boot").main(kernel(powered_off(says(b"hello\n")))) == 0
    out = capsys.readouterr().out
    assert "COM1 THR" in out
    assert "ended: cpu 0" in out
    assert json.loads((tmp_path / "trace_a_boot.json").read_text())["traceEvents"]
    assert (tmp_path / "trace_a_boot.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.skipif(not ABILITIES.page, reason="this KVM reports no writes to read-only pages")
def test_who_writes_this_page(example, kernel, capsys):
    program = Program().write(RESULT_GPA, 1).write(RESULT_GPA + 8, 2)
    at = LOAD_GPA + len(program.code)
    program.write(RESULT_GPA + 0x100, 3).write(RESULT_GPA + 0x2000, 4)
    assert example("who_writes_this_page").main(hex(RESULT_GPA), kernel(powered_off(program))) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "ended" in lines[0]
    assert [line.split()[0] for line in lines[1:]] == ["1", "1", "1"]
    assert hex(at) in lines[2]


def test_count_system_calls(example, tmp_path):
    program = Program().raw("eb01 c3")
    called = LOAD_GPA + len(program.code) - 1
    for number in (3, 7, 7, 0x1FF):
        program.raw("be" + number.to_bytes(4, "little").hex())  # mov esi, number
        back = called - (LOAD_GPA + len(program.code) + 5)
        program.raw("e8" + back.to_bytes(4, "little", signed=True).hex())
    with tiny_guest(tmp_path, program.power_off()) as guest:
        calls = example("count_system_calls").count(guest, called)
    assert calls == {3: 1, 7: 2, 0x1FF: 1}


# parse(edi, esi): whether the text begins with "4."; a block for each decision.
PARSER = "83fe02 7211 803f34 750c 807f012e 7506 ff0500002000 c3"
BLOCKS = [0, 5, 10, 16, 22]


def test_fuzz_a_parser(example, tmp_path, capsys):
    fuzz = example("fuzz_a_parser")
    program = Program().raw(FOR_EVER)
    parser = LOAD_GPA + len(program.code)
    program.raw(PARSER)
    with tiny_guest(tmp_path, bytes(program.code)) as guest:
        guest.cpus[0].regs.rsp = STACK_TOP_GPA
        blocks = fuzz.blocks_of(guest, parser, len(bytes.fromhex(PARSER)))
        assert [block - parser for block in blocks] == BLOCKS
        fuzzer = fuzz.Fuzzer(guest, parser, blocks)
        found = fuzzer.fuzz(400)
        assert fuzzer.reached == set(blocks)
        assert any(text.startswith(b"4.") for text in found), found
        # Each call began from the same state.
        fuzzer.call(b"4.")
        assert guest.cpus[0].memory.read_u32(RESULT_GPA) == 1
    assert "does not come back" not in capsys.readouterr().out


def test_fuzzing_finds_what_does_not_come_back(example, tmp_path, capsys):
    fuzz = example("fuzz_a_parser")
    program = Program().raw(FOR_EVER)
    parser = LOAD_GPA + len(program.code)
    program.raw("803f34 7402 c3 90 ebfe")  # a text that begins with "4" makes it hang
    with tiny_guest(tmp_path, bytes(program.code)) as guest:
        guest.cpus[0].regs.rsp = STACK_TOP_GPA
        fuzzer = fuzz.Fuzzer(guest, parser, [])
        assert fuzzer.call(b"5").address == fuzzer.end
        assert fuzzer.call(b"4").kind == "timeout"
        assert fuzzer.call(b"5").address == fuzzer.end


def test_bisect_a_hang(example, kernel, capsys):
    path = kernel(says(b"x", times=5, pause=0.3).raw(FOR_EVER))
    bisect = example("bisect_a_hang")
    assert bisect.main(path, each=patience(0.15), quiet=6) == 1
    out = capsys.readouterr().out
    when = float(re.search(r"it hangs from (\S+) s on", out)[1])
    assert when > 0.3
    assert "xxxxx" in out
    steps, total = re.search(r"cpu 0: +(\d+) of (\d+) steps at 0x10", out).groups()
    assert steps == total
    assert bisect.main(kernel(powered_off(says(b"fine")))) == 0


def test_boot_times(example, kernel, tmp_path, capsys):
    boot_times = example("boot_times")
    assert boot_times.main(kernel(powered_off(says(b"up"))), times=1) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(boot_times.CONFIGURATIONS) == 4
    assert (tmp_path / "boot_times.png").read_bytes()[:4] == b"\x89PNG"


def test_diff_two_snapshots(example, kernel, capsys):
    program = Program().write(RESULT_GPA, 0x11223344).write(RESULT_GPA + 4096, 1)
    program.write(RESULT_GPA + 0x10010, 0xAABBCCDD).raw(FOR_EVER)
    diff = example("diff_two_snapshots")
    assert diff.main("0.5", kernel(program)) == 0
    out = capsys.readouterr().out
    assert "3 pages differ" in out
    assert re.search(rf"2 pages at +{RESULT_GPA:#x}; .*00 00.* -> 44 33 22 11", out)
    assert re.search(rf"1 pages at +{RESULT_GPA + 0x10000:#x}; {RESULT_GPA + 0x10010:#x}:", out)
    assert diff.main("20", kernel(powered_off(Program()))) == 1


def test_last_good_snapshot(example, kernel, capsys):
    last_good = example("last_good_snapshot")
    path = kernel(says(b"y", times=3, pause=0.2).raw(CRASH))
    assert last_good.main(path, each=patience(0.1)) == 1
    out = capsys.readouterr().out
    assert out.count("ended: cpu 0") == 2
    assert "back to <Snapshot" in out
    assert re.search(r"before that [1-9]\d* exits", out)
    assert last_good.main(kernel(powered_off(says(b"fine")))) == 0


def test_the_smallest_kernel_there_is(example, tmp_path):
    path = example("guests").tiny(tmp_path / "tiny", powered_off(says(b"tiny")).code)
    with vmm.Guest(kernel=path, memory="16M") as guest:
        assert guest.run(seconds=patience(10)).outcome.kind == "shutdown"
        assert guest.serial.text == "tiny"


def cells_of(path: Path) -> list[str]:
    document = json.loads(path.read_text())
    assert (document["nbformat"], document["nbformat_minor"] >= 5) == (4, True)
    cells = [cell for cell in document["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    return ["".join(cell["source"]) for cell in cells]


def test_the_notebook_s_cells_one_after_the_other(example):
    """As a notebook does: what the last line of a cell is worth is shown."""
    names: dict[str, object] = {"__name__": "__main__"}
    shown = []
    for source in cells_of(EXAMPLES / "notebook.ipynb"):
        tree = ast.parse(source)
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, "cell", "exec"), names)
        if last is not None:
            found = eval(compile(ast.Expression(last.value), "cell", "eval"), names)
            shown.append(found._repr_html_() if hasattr(found, "_repr_html_") else found)
    assert "standing still" in shown[0]
    assert "inc dword ptr [0x200000]" in shown[1]
    assert "." * 50 in shown
    assert 50 in shown
    assert ["0x200000"] in shown
    names["guest"].close()


JUPYTER = """
import sys, nbclient, nbformat
document = nbformat.read("notebook.ipynb", 4)
nbformat.validate(document)
done = nbclient.NotebookClient(document, timeout=int(float(sys.argv[1]))).execute()
print(sum(bool(cell.get("outputs")) for cell in done.cells))
"""


@pytest.mark.waits
def test_the_notebook_as_jupyter_runs_it():
    for package in ("nbformat", "nbclient", "ipykernel"):
        pytest.importorskip(package)
    done = subprocess.run(
        [sys.executable, "-c", JUPYTER, str(patience(60))], cwd=EXAMPLES, check=False,
        env={**os.environ, "PYTHONPATH": str(EXAMPLES.parent)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 10
