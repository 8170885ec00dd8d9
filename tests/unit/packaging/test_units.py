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
PREPARE = "vllmd-prepare@.service"
# systemd-analyze(1): 0 is a service that can do nothing, 10 one that can do everything.
# 0.4 are the two kinds of namespaces by which guest RAM has its huge pages, 0.1 is capset(), by
# which the VMM gives up what it has left.
EXPOSURE_MAX = 1.3


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
            for name in (BIND, PREPARE):
                shutil.copy(SYSTEMD / kind / name, folder / name.replace("@", "@one"))
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


def test_the_sandbox_allows_what_confinement_needs():
    """The calls by which the VMM gives up more; systemd 252 has them in no set of services."""
    text = (SYSTEMD / "system" / UNIT).read_text()
    rows = [row.split("=")[1] for row in text.splitlines() if row.startswith("SystemCallFilter=")]
    assert rows.index("~@privileged") < len(rows) - 2  # it would take capset away again
    words = {word for row in rows for word in row.split()}
    landlock = {f"landlock_{word}" for word in ("create_ruleset", "add_rule", "restrict_self")}
    assert {"seccomp", "capset", *landlock} <= words


def test_each_instance_has_a_user_and_folders_of_its_own():
    lines = (SYSTEMD / "system" / UNIT).read_text().splitlines()
    assert {"User=vllmd-%i", "Group=vllmd-%i", "Requires=vllmd-prepare@%i.service"} <= set(lines)
    for kind in ("Runtime", "State", "Cache", "Logs"):
        assert f"{kind}Directory=vllmd/%i" in lines
    # Others are added by the settings, for as long as they name a device.
    assert [line for line in lines if line.startswith("DeviceAllow=")] == [
        "DeviceAllow=/dev/kvm rw"
    ]


def commands(tmp_path: Path, properties: str, code: int = 0) -> list[str]:
    """What the last command of vllmd-prepare@ runs, by stand-ins that write it down."""
    text = (SYSTEMD / "system" / PREPARE).read_text()
    script = text[text.index("/bin/sh -ec '") + len("/bin/sh -ec '") :].rstrip().removesuffix("'")
    script = script.replace("\\\n", " ").replace("\\n", "\n").replace("$$", "$")
    script = script.replace("%%", "%").replace("%i", "one")
    log = tmp_path / "log"
    log.touch()
    stand_ins = {"vllmd-hypervisor": f"printf '{properties}'; exit {code}"}
    stand_ins["systemctl"] = f'[ "$1" != show ] || echo vllmd-one; echo "$@" >>{log}'
    for name in ("chown", "chmod"):
        stand_ins[name] = f'echo {name} "$@" >>{log}'
    for name, body in stand_ins.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    subprocess.run(["/bin/sh", "-ec", script], check=True, env={"PATH": path})
    return [line for line in log.read_text().splitlines() if not line.startswith("show")]


def test_limits_and_devices_are_set_by_the_settings(tmp_path):
    rows = ["MemoryMax=5", "DeviceAllow=", "DeviceAllow=/dev/vfio/vfio rw"]
    rows += ["DeviceAllow=/dev/vfio/10 rw", "DeviceAllow=/dev/vfio/devices/vfio3 rw"]
    found = commands(tmp_path, "\\n".join(rows) + "\\n")
    assert found == [
        "chown vllmd-one /dev/vfio/10", "chmod 0600 /dev/vfio/10",
        "chown vllmd-one /dev/vfio/devices/vfio3", "chmod 0600 /dev/vfio/devices/vfio3",
        f"set-property --runtime vllmd-hypervisor@one.service {' '.join(rows)}",
    ]  # fmt: skip


def test_bad_settings_are_left_to_the_instance(tmp_path):
    assert commands(tmp_path, "", code=2) == []
