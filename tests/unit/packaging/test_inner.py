"""`devices` becomes `vmm.devices` in what is installed: import statements, and nothing else."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.packaging_tools import load

ROOT = Path(__file__).resolve().parents[3]
inner = load("inner")


@pytest.mark.parametrize(
    ("written", "installed"),
    [
        ("from devices import rtc\n", "from vmm.devices import rtc\n"),
        ("from devices.pci.bar import Bar  # x\n", "from vmm.devices.pci.bar import Bar  # x\n"),
        ("from  devices.a import (\n    A,\n)\n", "from  vmm.devices.a import (\n    A,\n)\n"),
        ("def f():\n    from devices import rtc\n", "def f():\n    from vmm.devices import rtc\n"),
        ("x = 1; from devices import rtc\n", "x = 1; from vmm.devices import rtc\n"),
        ("from devices_of_others import x\n", "from devices_of_others import x\n"),
        ("from devicesx.y import x\n", "from devicesx.y import x\n"),
        ("from vmm.devices import x\n", "from vmm.devices import x\n"),
        ("from vmm.host import devices\n", "from vmm.host import devices\n"),
        ("from . import devices\n", "from . import devices\n"),
        ("from .devices import x\n", "from .devices import x\n"),
        ('"""\nfrom devices import rtc\n"""\n', '"""\nfrom devices import rtc\n"""\n'),
        ("# from devices import rtc\n", "# from devices import rtc\n"),
        ("devices = []\ndevices.append(1)\n", "devices = []\ndevices.append(1)\n"),
        ("from devices import a\r\nfrom devices import b\n",
         "from vmm.devices import a\r\nfrom vmm.devices import b\n"),
    ],
)  # fmt: skip
def test_import_statements_and_nothing_else(written, installed):
    assert inner.rewrite(written, "x.py") == installed
    assert inner.rewrite(installed, "x.py") == installed


@pytest.mark.parametrize(
    "line",
    ["import devices", "import devices.rtc as rtc", "import os, devices", "load('devices.rtc')"],
)
def test_what_cannot_be_moved_ends_the_build(line):
    with pytest.raises(inner.Unmovable, match="x.py:2"):
        inner.rewrite(f"\n{line}\n", "x.py")


def test_the_whole_tree(tmp_path):
    for top, place in (("vmm", "vmm"), ("devices", "vmm/devices")):
        ignore = shutil.ignore_patterns("*.so", "__pycache__")
        shutil.copytree(ROOT / top, tmp_path / place, ignore=ignore, dirs_exist_ok=True)
    inner.rewrite_tree(tmp_path)
    files = sorted(tmp_path.rglob("*.py"))
    assert len(files) > 50
    told = 0
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in getattr(node, "names", ()) if type(node) is ast.Import]
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.split(".")[0] == "devices"], path
            told += sum(name.startswith("vmm.devices") for name in names)
    assert told > 20


def test_a_build_leaves_nothing_of_an_earlier_one(tmp_path):
    """pip builds in the tree, and installs all that it finds in build/lib."""
    ignore = shutil.ignore_patterns(".*", "build", "dist", "tests", "*.so", "__pycache__")
    tree = Path(shutil.copytree(ROOT, tmp_path / "tree", ignore=ignore))
    built = tmp_path / "built"
    stale = ["devices/rtc.py", "vmm/gone.py", "vmm/_native/gone.cpython-311.so", "vmm/x.pxd"]
    kept = "vmm/_native/host/fd.cpython-311.so"
    for name in [*stale, kept]:
        (built / name).parent.mkdir(parents=True, exist_ok=True)
        (built / name).touch()
    command = [sys.executable, "setup.py", "-q", "build_py", f"--build-lib={built}"]
    subprocess.run(command, cwd=tree, check=True, capture_output=True)
    assert [name for name in stale if (built / name).exists()] == []
    assert (built / kept).exists()
    assert "from vmm.devices.rtc import" in (built / "vmm/machine.py").read_text()
    assert (built / "vmm/devices/rtc.py").exists()
    assert (built / "vmm/_commit.py").read_text().endswith("COMMIT = 'unknown'\n")
