"""The commit of a source tree, for what is built from it."""

from __future__ import annotations

import subprocess
from pathlib import Path

DIGITS = 12


def commit(root: Path) -> str:
    """Its first digits, with "-dirty" when files differ from it; "unknown" without git."""
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
