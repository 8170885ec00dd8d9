"""The command under test: VLLMD_TEST_COMMAND, else the one installed; and the static executable."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BINARY = ROOT / "dist/vllmd-hypervisor"


def command() -> str:
    """Path of the command that every suite runs."""
    installed = Path(sys.executable).with_name("vllmd-hypervisor")
    return os.environ.get("VLLMD_TEST_COMMAND") or str(installed)
