"""The static executable: what it is, what it opens, what it heeds; and every test of the command.

`make binary` builds it; without it these tests fail under VLLMD_TEST_KVM=1, else they are skipped.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.binary import BINARY, ROOT, difference
from tests.support.command import Command
from tests.support.commands_tests import pass_with
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
@pytest.mark.parametrize("which", ["not waits", pytest.param("waits", marks=pytest.mark.full)])
def test_the_commands_tests_pass_with_it(which):
    """The same suite as the installed package, with the command taken from the variable."""
    pass_with(BINARY, which)


def test_pythons_variables_change_nothing(tmp_path):
    (tmp_path / "os.py").write_text("raise SystemExit('read a module from PYTHONPATH')")
    (tmp_path / "vmm").mkdir()
    (tmp_path / "vmm/__init__.py").write_text("raise SystemExit('read vmm from the folder')")
    (tmp_path / "pyvenv.cfg").write_text("home = /nowhere\n")
    shutil.copy(BINARY, tmp_path / "vllmd-hypervisor")
    env = {
        "PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path), "PYTHONHOME": str(tmp_path),
        "PYTHONSTARTUP": str(tmp_path / "os.py"), "PYTHONINSPECT": "1", "PYTHONVERBOSE": "1",
        "PYTHONUTF8": "0", "PYTHONIOENCODING": "utf-16", "PYTHONWARNINGS": "error",
        "PYTHONDUMPREFS": "1", "PYTHONPROFILEIMPORTTIME": "1", "PYTHONCOERCECLOCALE": "warn",
        "LC_ALL": "de_DE.ISO-8859-1",
    }  # fmt: skip
    plain = run(BINARY, "--version", env={"PATH": os.environ["PATH"]})
    told = run(tmp_path / "vllmd-hypervisor", "--version", env=env, cwd=tmp_path)
    assert told.returncode == plain.returncode == 0
    assert (told.stdout, told.stderr) == (plain.stdout, "")


def test_it_opens_only_what_the_settings_name(tmp_path):
    """strace: of files that are not the kernel's, a start opens what it was told to, no other."""
    command = Command(tmp_path)
    trace = tmp_path / "trace"
    done = run(
        "strace", "-f", "-e", "trace=open,openat,openat2,execve", "-o", trace, BINARY, "start",
        env=command.env,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    text = trace.read_text()
    opened = re.findall(r"open(?:at2?)?\((?:AT_FDCWD, )?\"([^\"]*)\"", text)
    assert str(tmp_path / "guest.elf") in opened
    # Landlock's rules name folders: O_PATH opens nothing of what is in them.
    named = {"/proc", "/sys", str(tmp_path)}
    known = (*KERNEL_FILES, str(tmp_path) + "/")
    assert not [path for path in opened if path not in named and not path.startswith(known)]
    assert text.count("execve(") == 1, "another program was run"


def test_version():
    told = run(BINARY, "--version").stdout
    form = (
        r"vllmd-hypervisor \d+\.\d+\.\d+ \(commit ([0-9a-f]{12}(-dirty)?|unknown), "
        r"Python 3\.11\.\d+, KVM API 12, kernel headers \d+\.\d+\.\d+\)\n"
    )
    assert re.fullmatch(form, told), told


def test_help_fits_a_screen():
    lines = run(BINARY, "--help").stdout.splitlines()
    assert 10 < len(lines) < 24
    assert max(map(len, lines)) < 80


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
