"""The Debian package, installed and purged on a host whose PID 1 is systemd."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.lab.rig.steady import SteadyLab
from tests.support.binary import BINARY, ROOT


@pytest.fixture
def package(tmp_path) -> Path:
    """Of the executable as it is built."""
    assert BINARY.exists(), f"{BINARY} is not built: make binary"
    documents = [f"dist/{BINARY.name}.{kind}" for kind in ("8", "bash", "zsh", "fish")]
    subprocess.run(["make", *documents], cwd=ROOT, check=True, capture_output=True)
    env = {**os.environ, "DPKG_DEB_COMPRESSOR_TYPE": "gzip"}
    script = ROOT / "packaging/debian/build.sh"
    told = subprocess.run(
        [script, tmp_path], env=env, check=True, capture_output=True, text=True
    ).stdout  # fmt: skip
    return Path(told.strip())


def test_installed_upgraded_removed_and_purged(package):
    lab = SteadyLab(memory="2G", systemd=True)
    try:
        lab.call("tests.lab.scenarios.deb:life", package=str(package))
    finally:
        lab.close()
