"""House rules that a program can hold: sizes, magic addresses, the environment, start imports."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = sorted([*ROOT.glob("vmm/**/*.py"), *ROOT.glob("devices/**/*.py")])
NATIVE = sorted(ROOT.glob("vmm/_native/**/*.p[yx][xd]"))
TESTS = sorted([*ROOT.glob("tests/**/*.py"), *ROOT.glob("benchmarks/**/*.py")])
FILE_MAX = 400
FUNCTION_MAX = 80
# Nine functions of ten are shorter than this.
FUNCTION_P90_MAX = 20
GPA_FILES = {"vmm/layout.py", "vmm/check/probe.py"}
FORBIDDEN_AT_START = {
    "dataclasses", "typing", "enum", "re", "logging", "argparse", "json", "pathlib", "socket",
    "collections", "selectors", "signal", "subprocess", "inspect", "numpy", "elftools", "asyncio",
}  # fmt: skip


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", [*PRODUCT, *NATIVE, *TESTS], ids=name)
def test_file_size(path):
    assert len(path.read_text().splitlines()) <= FILE_MAX


@pytest.mark.parametrize("path", PRODUCT, ids=name)
def test_function_size(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= FUNCTION_MAX, f"{name(path)}:{node.lineno} {node.name}: {length} lines"


def test_most_functions_are_short():
    lengths = sorted(
        (node.end_lineno or 0) - node.lineno + 1
        for path in PRODUCT
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    )
    assert lengths[len(lengths) * 9 // 10] < FUNCTION_P90_MAX


def test_the_environment_is_read_in_one_place():
    for path in PRODUCT:
        text = path.read_text()
        if name(path) != "vmm/settings/config.py":
            assert "environ" not in [
                node.attr for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Attribute)
            ], name(path)
            assert "getenv(" not in text, name(path)


@pytest.mark.parametrize("path", PRODUCT, ids=name)
def test_guest_physical_addresses_live_in_the_layout(path):
    if name(path) in GPA_FILES:
        return
    text = path.read_text()
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and type(node.value) is int:
            source = lines[node.lineno - 1][node.col_offset : node.end_col_offset]
            high = source.startswith("0x") and node.value >= 0xC0000000
            page = node.value % 0x1000 == 0 and node.value & 0xFFFFFFFF != 0
            assert not (high and page and node.value < 1 << 32 and node.value != 0xFFFFF000), (
                f"{name(path)}:{node.lineno}: {source} looks like an address; "
                "it belongs in vmm/layout.py"
            )


def test_the_start_path_imports_little():
    """Everything that `start` needs before the guest's first instruction, in a fresh process."""
    code = (
        "import sys; before = set(sys.modules); "
        "import vmm.machine, vmm.run.lifecycle, vmm.command.cli; "
        "print(' '.join(sorted(set(sys.modules) - before)))"
    )
    out = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path[:0] = [{str(ROOT)!r}]; {code}"],
        check=True, capture_output=True, text=True,
    ).stdout.split()  # fmt: skip
    loaded = {module.split(".")[0] for module in out}
    assert not loaded & FORBIDDEN_AT_START


def test_import_vmm_loads_nothing_else():
    code = (
        "import sys; before = set(sys.modules); import vmm; "
        "print(' '.join(sorted(set(sys.modules) - before)))"
    )
    out = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path[:0] = [{str(ROOT)!r}]; {code}"],
        check=True, capture_output=True, text=True,
    ).stdout.split()  # fmt: skip
    assert out in (["vmm"], ["__future__", "vmm"])
