"""The binary's snapshot has all that a plain start imports."""

from __future__ import annotations

import ast
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.support.binary import ROOT
from tests.support.command import Command
from tests.support.speed import patience

PREPARE = ROOT / "packaging/binary/prepare.py"
# Imports what the snapshot has, then runs `start` and tells the modules that came later.
SCRIPT = """
import sys
sys.path[:0] = {path!r}
{imports}
before = set(sys.modules)
sys.argv = ["vllmd-hypervisor", "start"]
code = main()
print("later:", *sorted(set(sys.modules) - before), file=sys.stderr)
sys.exit(code)
"""


def prepared() -> list[str]:
    """The import statements of prepare.py, but for those that only an interpreter's start needs."""
    tree = ast.parse(PREPARE.read_text())
    found = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    return [ast.unparse(node) for node in found]


def later(command: Command) -> list[str]:
    """Modules that a start imports beyond the snapshot's."""
    script = command.folder / "start.py"
    script.write_text(SCRIPT.format(path=sys.path, imports="\n".join(prepared())))
    done = subprocess.run(
        [sys.executable, "-I", "-S", script], env=command.env, capture_output=True, text=True,
        stdin=subprocess.DEVNULL, timeout=patience(60), check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "hello" in done.stdout
    return done.stderr.rpartition("later:")[2].split()


@pytest.fixture
def folder():
    """Short: the control socket's path has an instance's whole name in it."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        yield Path(name)


def test_a_start_imports_nothing(folder):
    command = Command(folder)
    assert later(command), "the first start of a kernel reads its ELF headers, for all that follow"
    assert later(command) == []
    # Its own name, made from the image's, and a log in a file.
    command.set(NAME="", LOG_FILEPATH=folder / "log")
    assert later(command) == []
