"""The packaged units by systemd's own tools: no complaints, and how exposed they are."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SYSTEMD = Path(__file__).resolve().parents[3] / "packaging/systemd"
UNIT = "vllmd-hypervisor@.service"
BIND = "vllmd-bind@.service"
# systemd-analyze(1): 0 is a service that can do nothing, 10 one that can do everything.
# 0.4 are the two kinds of namespaces by which guest RAM has its huge pages.
EXPOSURE_MAX = 1.2


@pytest.fixture
def analyze(tmp_path):
    """systemd-analyze on the units of one manager, as installed: (exit code, output)."""
    if shutil.which("systemd-analyze") is None:
        assert os.environ.get("VLLMD_TEST_LAB") != "1", "apt-get install systemd-sysv"
        pytest.skip("needs systemd-analyze (apt-get install systemd-sysv)")

    def run(kind: str, *arguments: str) -> tuple[int, str]:
        folder = tmp_path / kind
        folder.mkdir()
        shutil.copy(SYSTEMD / "vllmd.slice", folder)
        # The command is looked for where it is installed, which a test does not do.
        text = (SYSTEMD / kind / UNIT).read_text()
        text = re.sub(r"^(Exec\w+=)vllmd-hypervisor ", rf"\1{sys.executable} ", text, flags=re.M)
        (folder / UNIT.replace("@", "@one")).write_text(text)
        if kind == "system":
            shutil.copy(SYSTEMD / kind / BIND, folder / BIND.replace("@", "@one"))
        done = subprocess.run(
            ["systemd-analyze", f"--{kind}", *arguments, *sorted(map(str, folder.iterdir()))],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
            env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
        )  # fmt: skip
        return done.returncode, done.stdout

    return run


@pytest.mark.parametrize("kind", ["system", "user"])
def test_nothing_to_complain_about(analyze, kind):
    assert analyze(kind, "verify") == (0, "")


def test_a_mistake_would_be_found(analyze, tmp_path, monkeypatch):
    broken = tmp_path / "units"
    shutil.copytree(SYSTEMD, broken)
    unit = broken / "system" / UNIT
    unit.write_text(unit.read_text().replace("NotifyAccess=main", "NotifyAcces=main"))
    monkeypatch.setattr("tests.unit.packaging.test_units.SYSTEMD", broken)
    assert "NotifyAcces" in analyze("system", "verify")[1]


def test_exposure(analyze, capsys):
    _, text = analyze("system", "security", "--offline=true", "--no-pager")
    found = re.search(r"exposure level for (vllmd-hypervisor@one\.service): ([\d.]+)", text)
    assert found, text
    with capsys.disabled():
        print(f"\nsystemd-analyze security: {found[1]}: {found[2]} of 10")
    assert float(found[2]) <= EXPOSURE_MAX, text


@pytest.mark.parametrize("kind", ["system", "user"])
def test_every_line_of_the_customer_s_unit_is_there(kind):
    text = (SYSTEMD / kind / UNIT).read_text()
    lines = ["Restart=on-failure", "TimeoutStopSec=30", "Slice=vllmd.slice"]
    lines += ["ExecStart=vllmd-hypervisor start", "ExecStop=vllmd-hypervisor stop"]
    # Told to stop, it is not started again; nor when that would not help.
    lines.append("RestartPreventExitStatus=2 36 37 38 39")
    if kind == "user":
        lines.append("EnvironmentFile=%h/.config/vllmd/hypervisor-%i.env")
    assert set(lines) <= set(text.splitlines())


def test_the_sandbox_allows_what_huge_pages_need():
    """Namespaces of the child's own and the calls by which it makes a file system; no others."""
    lines = (SYSTEMD / "system" / UNIT).read_text().splitlines()
    filters = [line for line in lines if line.startswith("SystemCallFilter=")]
    assert filters[-1] == "SystemCallFilter=fsopen fsconfig fsmount"
    assert "RestrictNamespaces=user mnt" in lines
