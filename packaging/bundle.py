"""Writes the bundle of what `start` imports, which vmm/light/bundle.py reads.

`make build` runs it for the checkout, setup.py calls it for a wheel.
"""

from __future__ import annotations

import ast
import marshal
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import CodeType

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from vmm.light.bundle import NAME, checksum  # noqa: E402

NATIVE = ROOT / "vmm/_native"
# What a start imports, each with what it imports itself. Other verbs' modules are read one by one.
ROOTS = (
    "vmm.command.cli",
    "vmm.boot.elf",
    "vmm.confine.lockdown",
    "vmm.host.descriptors",
    "vmm.host.preflight",
    "vmm.log.sinks",
    "vmm.run.instance",
    "vmm.run.lifecycle",
    "vmm.run.notify",
)
# The console script has these already.
READ_BEFORE = {"vmm", "vmm.light", "vmm.light.bundle"}


class Source:
    """A module's name, its source file, and its path below the folder that it is installed in."""

    def __init__(self, name: str, path: Path, installed: str) -> None:
        self.name = name
        self.path = path
        self.installed = installed


def sources(tree: Path) -> list[Source]:
    """The Python modules of ``tree``, and the native ones, which may not be built yet."""
    suffixes = {".py": ".py", ".pyx": sysconfig.get_config_var("EXT_SUFFIX")}
    found = []
    for top, pattern in ((tree / "vmm", "*.py"), (tree / "devices", "*.py"), (NATIVE, "*.pyx")):
        for path in sorted(top.rglob(pattern)):
            stem = path.relative_to(ROOT if top == NATIVE else tree).with_suffix("")
            name = ".".join(stem.parent.parts if stem.name == "__init__" else stem.parts)
            found.append(Source(name, path, f"{stem}{suffixes[path.suffix]}"))
    return found


def imports(node: ast.AST) -> Iterator[str]:
    """Names that a module imports, or may import, when it is imported itself."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
            yield child.module or ""
        elif isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        elif not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from imports(child)


def reached(modules: dict[str, Source]) -> set[str]:
    """Names of the modules that come with the roots."""
    found: set[str] = set()
    left = list(ROOTS)
    while left:
        name = left.pop()
        if name in modules and name not in found:
            found.add(name)
            left.append(name.rpartition(".")[0])
            if modules[name].path.suffix == ".py":
                left += imports(ast.parse(modules[name].path.read_bytes()))
    return found


def entry(source: Source, editable: bool) -> tuple[str, int, int, CodeType | None]:
    """What vmm/light/bundle.py must know of a module."""
    if source.path.suffix == ".pyx":
        return source.installed, 0, 0, None
    facts = source.path.stat()
    shown = str(source.path) if editable else source.installed
    code = compile(source.path.read_bytes(), shown, "exec", dont_inherit=True, optimize=0)
    return source.installed, facts.st_size, facts.st_mtime_ns if editable else 0, code


def write(tree: Path, editable: bool) -> Path:
    """Write the bundle of ``tree`` beside vmm/light/bundle.py, in place at once; returns its path.

    In an ``editable`` install the sources stay where they are; else an installer copies them.
    """
    modules = {source.name: source for source in sources(tree)}
    needed = reached(modules) - READ_BEFORE
    found = {
        name: entry(source, editable)
        for name, source in modules.items()
        if name in needed or source.path.suffix == ".pyx"
    }
    # Twice: which objects it shares depends on reference counts, and what was read has the same.
    data = marshal.dumps(marshal.loads(marshal.dumps(found)))
    target = tree / "vmm/light" / NAME
    temporary = target.with_suffix(".new")
    temporary.write_bytes(checksum(data) + data)
    temporary.replace(target)
    return target


if __name__ == "__main__":
    print(write(ROOT, editable=True))
