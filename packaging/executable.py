"""The executable that a wheel has for its command: the one that is named, or made on the way.

So what pip installs starts as fast as the executable does, wherever a build has what it is made of.
Elsewhere the command is in Python, and the build says what was missing (pip shows it with -v).
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import commit

# In the environment: an executable's path, or NONE for a command in Python.
VARIABLE = "VLLMD_WHEEL_EXECUTABLE"
NONE = "none"
# The interpreter that is inside; which one runs pip makes no difference.
INTERPRETER = Path("/usr/bin/python3.11")
WORK, OUTPUT = "build/executable", "build/executable/vllmd-hypervisor"


def wanted(root: Path) -> Path | None:
    """Its path; None where the command is to be in Python."""
    named = os.environ.get(VARIABLE)
    if named == NONE:
        return None
    return made(root) if named is None else checked(Path(named), root)


def checked(path: Path, root: Path) -> Path:
    """The same path; SystemExit when it was made from other sources than the wheel."""
    told = subprocess.run([path, "--version"], capture_output=True, text=True, check=True)
    ours = commit.commit(root)
    if ours != "unknown" and f"commit {ours}," not in told.stdout:
        raise SystemExit(
            f"{VARIABLE}: {path} is not of commit {ours} but {told.stdout.strip()}:"
            f" rm {path}; make binary"
        )
    return path


def made(root: Path) -> Path | None:
    """A new one, or None where this host has not what it is made of."""
    found = importlib.util.find_spec("elftools")
    if found is None or found.origin is None:
        return unmade("pyelftools is not installed", "pip install pyelftools")
    if not INTERPRETER.exists():
        return unmade(f"there is no {INTERPRETER}", "build on Debian 12")
    builder = root / "packaging/binary/build.py"
    words = [INTERPRETER, "-I", builder, "--work", root / WORK, "--output", root / OUTPUT]
    done = subprocess.run(
        [*words, "--elftools", Path(found.origin).parent], stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        return unmade(done.stdout.strip(), "packaging/debian-packages.sh binary")
    print(done.stdout, end="")
    return root / OUTPUT


def unmade(why: str, remedy: str) -> None:
    """Say that the command will be in Python."""
    print(
        f"WARNING: the wheel's command is in Python, and 20 ms slower to start than the executable,"
        f" which was not made: {why}. Remedy: {remedy}, and build again.",
        file=sys.stderr,
    )
