"""The commit of a source tree, for what is built from it."""

from __future__ import annotations

import subprocess
from pathlib import Path

DIGITS = 12
# Written into what is built; an sdist has it in place of a repository.
MODULE = "vmm/_commit.py"


def commit(root: Path) -> str:
    """Its first digits, with "-dirty" when files differ from it; "unknown" without git.

    Of an sdist, what it was made from. A repository around the tree is somebody else's.
    """
    written = root / MODULE
    if written.exists():
        names: dict[str, str] = {}
        exec(written.read_text(), names)
        return names["COMMIT"]
    if not (root / ".git").exists():
        return "unknown"
    git = ["git", "-C", str(root)]
    try:
        head = subprocess.run(
            [*git, "rev-parse", f"--short={DIGITS}", "HEAD"], capture_output=True, text=True,
            check=True,
        ).stdout.strip()  # fmt: skip
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True,
            check=True,
        ).stdout  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("-dirty" if changed else "")


def write(root: Path, folder: Path) -> None:
    """vmm/_commit.py of ``root`` into a copy of it."""
    text = f'"""Written by the build."""\n\nCOMMIT = {commit(root)!r}\n'
    (folder / MODULE).write_text(text)
