"""Where `devices` goes in an installed copy: into the package vmm, so that it meets no other.

The tree keeps it at the top. A name as plain as `devices` in site-packages would overwrite somebody
else's package, or be overwritten, so wheels hold it as `vmm.devices`, and their import statements
say so. Editable installs and the static executable use the tree as it is.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

OUTER = "devices"
INNER = f"vmm.{OUTER}"
DOTTED = re.compile(rf"{OUTER}(\.[a-z_]\w*)+")


class Unmovable(Exception):
    """A line names the package in a way that is not rewritten; it says which and why."""


def inner(module: str) -> str:
    """What a module of the tree is called in an installed copy."""
    below = module == OUTER or module.startswith(f"{OUTER}.")
    return INNER + module[len(OUTER) :] if below else module


def rewrite(source: str, shown: str) -> str:
    """The same module with `from devices.x import y` as `from vmm.devices.x import y`.

    Nothing else of a line changes, and no line is added. Unmovable for `import devices`, which
    would bind another name, and for a string that is a module's name.
    """
    lines = source.splitlines(keepends=True)
    for node in ast.walk(ast.parse(source, shown)):
        where = f"{shown}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import):
            if any(inner(alias.name) != alias.name for alias in node.names):
                raise Unmovable(f"{where}: write `from {OUTER} import ...`")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if DOTTED.fullmatch(node.value):
                raise Unmovable(f"{where}: {node.value!r} names a module; import it")
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            if inner(node.module) != node.module:
                at = node.lineno - 1
                lines[at] = re.sub(rf"\bfrom(\s+){OUTER}\b", rf"from\1{INNER}", lines[at], count=1)
    return "".join(lines)


def rewrite_tree(folder: Path) -> None:
    """Rewrite every module below a folder, in place; done already is done."""
    for path in sorted(folder.rglob("*.py")):
        old = path.read_text(encoding="utf-8")
        new = rewrite(old, str(path.relative_to(folder)))
        if new != old:
            path.write_text(new, encoding="utf-8")
