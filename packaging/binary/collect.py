"""Finds the Python modules that the binary needs, by following import statements."""

from __future__ import annotations

import ast
import marshal
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


class Missing(Exception):
    """A module that is imported, cannot be found, and is not known as unneeded."""


class Module:
    """A Python module that is frozen: its name, its source, and whether it is a package."""

    def __init__(self, name: str, path: Path, root: Path) -> None:
        self.name = name
        self.is_package = path.name == "__init__.py"
        # What tracebacks show: no path of the machine that built it, and in brackets, so that
        # nobody looks for a source file of that name.
        self.shown = f"<{path.relative_to(root)}>"
        self.tree = ForTypesOnly().visit(ast.parse(path.read_bytes(), self.shown))

    @property
    def package(self) -> str:
        """The package that relative imports start from."""
        return self.name if self.is_package else self.name.rpartition(".")[0]

    def code(self) -> types.CodeType:
        """Code without docstrings and assertions (optimise 2)."""
        return compile(self.tree, self.shown, "exec", dont_inherit=True, optimize=2)


def marshalled(code: types.CodeType) -> bytes:
    """The code as bytes.

    Once more through marshal: which objects it shares depends on reference counts, and these are
    the same for what it has just read.
    """
    return marshal.dumps(marshal.loads(marshal.dumps(code)))


class ForTypesOnly(ast.NodeTransformer):
    """Drops what only type checkers read: `if TYPE_CHECKING:` blocks."""

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        """Keep the other branch, or nothing."""
        self.generic_visit(node)
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return node.orelse or ast.copy_location(ast.Pass(), node)
        return node


def imports(tree: ast.AST, everywhere: bool) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """(import statement, whether its failure is caught) of a module.

    Not ``everywhere``: those that run when the module is imported, not those inside functions.
    """

    def visit(node: ast.AST, caught: bool) -> Iterator[tuple[Any, bool]]:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node, caught
            return
        if isinstance(node, FUNCTIONS) and not everywhere:
            return
        if isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'":
            return
        if isinstance(node, ast.Try) and any(map(_catches_import_error, node.handlers)):
            for child in node.body:
                yield from visit(child, True)
            for child in [*node.handlers, *node.orelse, *node.finalbody]:
                yield from visit(child, caught)
            return
        for child in ast.iter_child_nodes(node):
            yield from visit(child, caught)

    return visit(tree, False)


def _catches_import_error(handler: ast.ExceptHandler) -> bool:
    return handler.type is None or "ImportError" in ast.unparse(handler.type)


class Collector:
    """Follows imports from some roots. ``built_in`` and ``left_out`` end the search."""

    def __init__(
        self, places: list[Path], built_in: set[str], left_out: dict[str, str], own: set[str]
    ) -> None:
        self.places = places
        self.built_in = built_in
        self.left_out = left_out
        self.own = own
        self.modules: dict[str, Module] = {}
        self.skipped: set[str] = set()

    def add(self, name: str, importer: str) -> None:
        """Take a module with the packages above it, and all that they import."""
        parts = name.split(".")
        for count in range(1, len(parts) + 1):
            self._add_one(".".join(parts[:count]), importer)

    def _ends_here(self, name: str) -> bool:
        if name in self.modules or name in self.built_in:
            return True
        parts = name.split(".")
        for count in range(1, len(parts) + 1):
            if ".".join(parts[:count]) in self.left_out:
                self.skipped.add(".".join(parts[:count]))
                return True
        return False

    def _add_one(self, name: str, importer: str) -> None:
        if self._ends_here(name):
            return
        found = self.find(name)
        if found is None:
            raise Missing(f"{importer} imports {name}, which is neither there nor left out")
        path, root = found
        module = self.modules[name] = Module(name, path, root)
        # What the standard library imports inside its functions is for uses that we do not make;
        # the exceptions are among the roots.
        for node, caught in imports(module.tree, everywhere=name.split(".")[0] in self.own):
            for target in self._targets(node, module):
                if not (caught and self.find(target) is None and target not in self.built_in):
                    self.add(target, name)

    def _targets(self, node: ast.Import | ast.ImportFrom, module: Module) -> list[str]:
        if isinstance(node, ast.Import):
            return [alias.name for alias in node.names]
        base = node.module or ""
        if node.level:
            package = module.package.split(".")
            above = package[: len(package) - node.level + 1]
            base = ".".join([*above, *([base] if base else [])])
        below = [f"{base}.{alias.name}" for alias in node.names]
        return [base, *[n for n in below if n in self.built_in or self.find(n) is not None]]

    def find(self, name: str) -> tuple[Path, Path] | None:
        """(source file, place it was found in) of a module."""
        relative = Path(*name.split("."))
        for root in self.places:
            for path in (root / relative / "__init__.py", root / relative.with_suffix(".py")):
                if path.is_file():
                    return path, root
        return None
