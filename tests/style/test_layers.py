"""The floors of the house: a file imports from its own floor or from those below, never up."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# From the top down. A name stands for a file, or for a room with all its files.
FLOORS = (
    ("vmm.__main__", "vmm.shell"),
    ("vmm.command",),
    ("vmm.check",),
    ("vmm.debug",),
    # A program of its own, which measures other programs.
    ("vmm.bench",),
    ("vmm.run",),
    ("vmm.confine",),
    ("vmm.machine",),
    ("devices",),
    ("vmm.host",),
    (
        "vmm.vm",
        "vmm.memory",
        "vmm.kept",
        "vmm.vcpu",
        "vmm.irq",
        "vmm.acpi",
        "vmm.boot",
        "vmm.x86",
        "vmm.guest",
    ),
    ("vmm.log", "vmm.settings", "vmm.seed"),
    ("vmm.errors", "vmm.layout", "vmm.light"),
    ("vmm._native",),
)
# The native half has floors of its own.
NATIVE_FLOORS = (
    ("disk", "console"),
    ("virtio", "ports", "vfio"),
    ("kvm", "memory"),
    ("host",),
    ("linux",),
)
# Neither is imported by name: the package itself resolves lazily, the commit is written by builds.
NO_FLOOR = ("vmm", "vmm._commit", "vmm._parts")
SOURCES = sorted([*ROOT.glob("vmm/**/*.py"), *ROOT.glob("devices/**/*.py")])
NATIVE = sorted(ROOT.glob("vmm/_native/**/*.p[yx][xd]"))
CIMPORT = re.compile(r"^\s*from (vmm\._native\.[\w.]+) c?import", re.MULTILINE)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def floor(module: str, floors=FLOORS) -> int:
    """How far down it is."""
    for number, names in enumerate(floors):
        if any(module == name or module.startswith(f"{name}.") for name in names):
            return number
    raise AssertionError(f"{module} stands in no room: see FLOORS in {Path(__file__).name}")


def imports(path: Path) -> list[tuple[int, str]]:
    """(line, module) of what a file imports of ours, for types as well."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                place = ROOT / Path(*full.split("."))
                exists = place.is_dir() or any(place.parent.glob(f"{place.name}.py*"))
                found.append((node.lineno, full if exists else node.module))
        elif isinstance(node, ast.Import):
            found.extend((node.lineno, alias.name) for alias in node.names)
    return [
        (line, name)
        for line, name in found
        if name.split(".")[0] in ("vmm", "devices") and name not in NO_FLOOR
    ]


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_imports_look_down(path):
    own = module_name(path)
    if own in NO_FLOOR:
        return
    up = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for line, name in imports(path)
        if floor(name) < floor(own)
    ]
    assert not up, f"{own} is on floor {floor(own)}, below what it imports: {up}"


@pytest.mark.parametrize("path", NATIVE, ids=lambda path: str(path.relative_to(ROOT)))
def test_native_imports_look_down(path):
    own = path.relative_to(ROOT / "vmm/_native").parts[0]
    if own == "__init__.pxd":
        return
    for line in path.read_text().splitlines():
        words = line.split()
        if words[:1] in (["from"], ["import"], ["cimport"]) and len(words) > 1:
            top = words[1].split(".")[0]
            assert top not in ("vmm", "devices") or words[1].startswith("vmm._native."), line
    for module in CIMPORT.findall(path.read_text()):
        room = module.split(".")[2]
        assert floor(room, NATIVE_FLOORS) >= floor(own, NATIVE_FLOORS), f"{path}: {module}"


def test_no_circle_of_imports():
    arrows = {module_name(path): {name for _, name in imports(path)} for path in SOURCES}

    def visit(module: str, above: tuple[str, ...], done: set[str]) -> None:
        assert module not in above, " -> ".join([*above[above.index(module) :], module])
        if module not in done:
            for name in sorted(arrows.get(module, ())):
                visit(name, (*above, module), done)
            done.add(module)

    done: set[str] = set()
    for module in sorted(arrows):
        visit(module, (), done)


ROOMS = sorted(
    path
    for top in ("vmm", "devices")
    for path in [ROOT / top, *(ROOT / top).rglob("*")]
    if path.is_dir() and any(path.glob("*.py*")) and path.name != "__pycache__"
)


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: str(room.relative_to(ROOT)))
def test_each_room_says_what_may_be_in_it(room):
    tree = ast.parse((room / "__init__.py").read_text())
    assert ast.get_docstring(tree)
    if room != ROOT / "vmm":
        assert len(tree.body) == 1, "a room's __init__.py holds one line, its docstring"
