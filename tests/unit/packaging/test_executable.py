"""Which executable a wheel has for its command; the build itself is in tests/kvm/test_pip.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.packaging_tools import load

executable = load("executable")


def program(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def plain(monkeypatch) -> None:
    monkeypatch.delenv(executable.VARIABLE, raising=False)


def test_one_that_is_named(tmp_path, monkeypatch):
    (tmp_path / "vmm").mkdir()
    (tmp_path / "vmm/_commit.py").write_text("COMMIT = 'abc'\n")
    named = program(tmp_path / "named", "echo 'vllmd-hypervisor 0.1.0 (commit abc, Python)'")
    monkeypatch.setenv(executable.VARIABLE, str(named))
    assert executable.wanted(tmp_path) == named


def test_one_of_other_sources(tmp_path, monkeypatch):
    (tmp_path / "vmm").mkdir()
    (tmp_path / "vmm/_commit.py").write_text("COMMIT = 'abc'\n")
    named = program(tmp_path / "named", "echo 'vllmd-hypervisor 0.1.0 (commit abcd, Python)'")
    monkeypatch.setenv(executable.VARIABLE, str(named))
    with pytest.raises(SystemExit, match="not of commit abc but .*commit abcd.*make binary"):
        executable.wanted(tmp_path)


def test_none(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv(executable.VARIABLE, executable.NONE)
    assert executable.wanted(tmp_path) is None
    assert capfd.readouterr() == ("", "")


def test_a_host_without_the_interpreter(plain, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(executable, "INTERPRETER", tmp_path / "python")
    assert executable.wanted(tmp_path) is None
    told = capfd.readouterr().err
    assert f"not made: there is no {tmp_path}/python. Remedy: build on Debian 12" in told


def test_a_build_that_fails(plain, tmp_path, monkeypatch, capfd):
    failing = program(tmp_path / "python", "echo libpython3.11.a is missing; exit 1")
    monkeypatch.setattr(executable, "INTERPRETER", failing)
    assert executable.wanted(tmp_path) is None
    assert "not made: libpython3.11.a is missing. Remedy: packaging/" in capfd.readouterr().err


def test_a_build_that_ends_well(plain, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(executable, "INTERPRETER", program(tmp_path / "python", "echo done: $2"))
    assert executable.wanted(tmp_path) == tmp_path / executable.OUTPUT
    assert capfd.readouterr() == (f"done: {tmp_path}/packaging/binary/build.py\n", "")
