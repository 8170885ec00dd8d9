"""The static executable: what it is, what it opens, what it heeds; and every test of the command.

`make binary` builds it; without it these tests fail under VLLMD_TEST_KVM=1, else they are skipped.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.support.binary import BINARY, ROOT, difference
from tests.support.packaging_tools import load

# What the kernel itself offers: no files of the host's installation.
KERNEL_FILES = ("/proc/", "/dev/", "/sys/")
STATIC_PYTHON = "/usr/bin/python3.11"
BUILD_SECONDS = 600


@pytest.fixture(autouse=True)
def built():
    if BINARY.exists():
        return
    if os.environ.get("VLLMD_TEST_KVM") == "1":
        pytest.fail(f"{BINARY} is not built: make binary")
    pytest.skip(f"{BINARY} is not built: make binary")


def run(*command: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*map(str, command)], capture_output=True, text=True, check=False, **options
    )  # type: ignore[call-overload]


def test_it_is_static():
    told = run("ldd", BINARY)
    assert "not a dynamic executable" in told.stdout + told.stderr
    assert b"/lib64/ld-linux" not in BINARY.read_bytes()


@pytest.mark.timeout(BUILD_SECONDS)
def test_two_builds_are_the_same_bytes(tmp_path):
    """Two builds in two places, each from nothing but the sources and the first one's profile.

    The one that is tested is the first, where no source has changed since it was built.
    """
    one, work = BINARY, ROOT / "build/binary"
    if not is_fresh():
        one, work = build(tmp_path / "one"), tmp_path / "one/work"
    assert difference(one, build(tmp_path / "another", "--profile", work)) == ""


def is_fresh() -> bool:
    """Whether it is what a build of now would be: of these sources, and of this commit."""
    told = run(BINARY, "--version").stdout
    same = f"commit {load('commit').commit(ROOT)}," in told
    return same and run("make", "--question", "binary", cwd=ROOT).returncode == 0


def build(folder: Path, *more: object) -> Path:
    import elftools

    output = folder / "vllmd-hypervisor"
    done = run(
        STATIC_PYTHON, "-I", "packaging/binary/build.py", "--work", folder / "work", *more,
        "--output", output, "--elftools", elftools.__path__[0], cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # What a start writes to lies together.
    told = re.search(r"a start writes to (\d+) of (\d+) pages\n", done.stdout)
    assert told, done.stdout
    assert int(told[1]) < int(told[2]) / 3
    return output
