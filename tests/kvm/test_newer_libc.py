"""The commands' tests with the next Debian's C library, whose system calls are others."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.guests.packages import unpacked
from tests.support.binary import ROOT

SUITE = "trixie"
SECONDS = 1200


@pytest.fixture
def command(tmp_path) -> Path:
    """The installed command, its interpreter loaded with that library."""
    library = unpacked("libc6", SUITE)
    interpreter = Path(sys.executable)
    words = [
        library / "usr/lib64/ld-linux-x86-64.so.2", "--argv0", interpreter,
        "--library-path", library / "usr/lib/x86_64-linux-gnu",
        interpreter, interpreter.with_name("vllmd-hypervisor"),
    ]  # fmt: skip
    wrapper = tmp_path / "vllmd-hypervisor"
    wrapper.write_text(f'#!/bin/sh\nexec {shlex.join(map(str, words))} "$@"\n')
    wrapper.chmod(0o755)
    return wrapper


@pytest.mark.full
@pytest.mark.timeout(SECONDS)
def test_no_thread_makes_a_call_that_its_filter_lacks(command):
    done = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0",
            "-m", "not waits", "tests/kvm/command",
        ],
        cwd=ROOT, env={**os.environ, "VLLMD_TEST_COMMAND": str(command)}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:]
    assert re.search(r"\d{2,} passed", done.stdout), done.stdout
