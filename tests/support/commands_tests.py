"""The tests of the command, run again with another command."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.support.binary import ROOT


def pass_with(command: Path, which: str, *more: str) -> None:
    """AssertionError unless those with the marks ``which``, and as pytest's ``more`` says, pass."""
    done = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0",
            "-m", which, *more, "tests/kvm/command",
        ],
        cwd=ROOT, env={**os.environ, "VLLMD_TEST_COMMAND": str(command)}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:]
    assert re.search(r"\d{2,} passed", done.stdout), done.stdout
