"""The documentation builds without a warning, and its pictures are there where /dev/kvm is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.speed import patience

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted(path.name for path in ROOT.glob("examples/*.py") if path.name != "guests.py")


@pytest.mark.full
def test_the_documentation_builds(tmp_path):
    pytest.importorskip("sphinx")
    pytest.importorskip("myst_parser")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "--quiet", "-W", "-b", "html", "docs", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=patience(110), check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    reference = (tmp_path / "reference.html").read_text()
    assert "vmm.debug.guest.Guest.snapshot" in reference
    pictures = sorted(path.name for path in (tmp_path / "_images").glob("*.png"))
    able = os.access("/dev/kvm", os.R_OK | os.W_OK)
    assert pictures == (["boot_times.png", "trace_a_boot.png"] if able else [])
    assert able == ("without /dev/kvm" not in (tmp_path / "tutorial.html").read_text())


@pytest.mark.parametrize("name", EXAMPLES)
def test_each_example_has_a_question_a_usage_line_and_a_main(name):
    text = (ROOT / "examples" / name).read_text()
    assert re.match(r'"""[^\n]*\?', text)
    assert f"    python examples/{name}" in text
    assert "\ndef main(" in text
    assert len(text.splitlines()) <= 100
    told = (ROOT / "docs/howto/examples.md").read_text() + (
        ROOT / "docs/howto/devices.md"
    ).read_text()
    assert f"`{name}" in told
