"""The layer order: a module imports only from its own layer or from those below."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# First match wins; a prefix stands for the module and everything under it.
LAYERS: list[tuple[str, int]] = [
    ("vmm._native", 1),
    ("vmm.errors", 2),
    ("vmm.record", 2),
    ("vmm.jsontext", 2),
    ("vmm.layout", 2),
    ("vmm.log_sinks", 2),
    ("vmm.log", 2),
    ("vmm.config", 2),
    ("vmm.memory", 3),
    ("vmm.bus", 3),
    ("vmm.irq", 3),
    ("vmm.vm", 3),
    ("vmm.vcpu", 3),
    ("vmm.image_lock", 2),
    ("vmm.disk", 3),
    ("vmm.smbios", 3),
    ("vmm.x86", 3),
    ("vmm.boot", 3),
    ("vmm.acpi", 3),
    ("vmm.symbols", 3),
    ("vmm.finding", 2),
    ("vmm.host", 2),
    ("vmm.pci_host", 3),
    ("vmm.vfio_backend", 3),
    ("vmm.probe", 3),
    ("devices", 4),
    ("vmm.console", 5),
    ("vmm.eventloop", 5),
    ("vmm.notify", 5),
    ("vmm.machine", 6),
    ("vmm.cli", 8),
    ("vmm.__main__", 9),
    ("vmm", 7),
]
SOURCES = sorted([*ROOT.glob("vmm/**/*.py"), *ROOT.glob("devices/**/*.py")])


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer(module: str) -> int:
    for prefix, number in LAYERS:
        if module == prefix or module.startswith((prefix + ".", prefix + "_")):
            return number
    raise AssertionError(f"{module} has no layer")


def runtime_imports(path: Path) -> list[tuple[int, str]]:
    """(line, module) of our modules imported when the code runs (not for types only)."""
    found = []

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name):
            if node.test.id == "TYPE_CHECKING":
                return
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                path = ROOT / Path(*full.split("."))
                exists = path.with_suffix(".py").exists() or path.is_dir()
                found.append((node.lineno, full if exists else node.module))
        elif isinstance(node, ast.Import):
            found.extend((node.lineno, alias.name) for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return [(line, name) for line, name in found if name.split(".")[0] in ("vmm", "devices")]


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_imports_look_down(path):
    own = module_name(path)
    if own == "vmm":
        return  # resolves public names lazily, imports nothing
    above = [
        f"{path.relative_to(ROOT)}:{line} imports {name} (layer {layer(name)})"
        for line, name in runtime_imports(path)
        if layer(name) > layer(own)
    ]
    assert not above, f"{own} is in layer {layer(own)}: {above}"


def test_native_modules_import_no_python_module_of_ours():
    for path in ROOT.glob("vmm/_native/*.pyx"):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            words = line.split()
            if words[:1] in (["from"], ["import"]) and len(words) > 1:
                top = words[1]
                ours = top.startswith(("vmm", "devices"))
                assert not ours or top.startswith("vmm._native"), f"{path.name}:{number}: {line}"
