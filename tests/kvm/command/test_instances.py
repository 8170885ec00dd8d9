"""Which instances there are: known and unknown names, lists, what is left of failed starts."""

from __future__ import annotations

import json
import os

import pytest

from tests.support.command import FAULT, HALT, RESET, Command, finish


@pytest.mark.parametrize("verb", ["stop", "status", "forget"])
@pytest.mark.parametrize("name", ["vn", ""])
def test_a_name_that_nobody_has(tmp_path, verb, name):
    command = Command(tmp_path)
    assert command.run("start")[0] == 0
    code, text = command.run(verb, name)
    assert code == 4, text
    assert "known: vm" in text
    assert "stopped" not in text
    assert "not running" not in text


def test_a_name_that_was_never_started(tmp_path):
    command = Command(tmp_path)
    for verb in ("stop", "status"):
        code, text = command.run(verb)
        assert (code, "no instance 'vm' is known" in text) == (4, True), text
    code, text = command.run("status", "--json")
    assert code == 4
    facts = json.loads(text)
    assert (facts["name"], facts["state"]) == ("vm", "unknown")


def test_a_list_and_what_is_forgotten(tmp_path):
    command = Command(tmp_path)
    assert command.run("start")[0] == 0
    command = Command(tmp_path, HALT, NAME="two")
    process = command.start()
    text = command.run("list", "--json")[1]
    ours = [each for each in json.loads(text)["instances"] if str(tmp_path) in each["folder"]]
    first, second = sorted(ours, key=lambda each: each["state"])
    assert (first["name"], first["state"], first["pid"]) == ("two", "running", process.pid)
    assert (first["cpus"], first["memory"]) == (1, 16 << 20)
    assert first["since"]
    assert (second["name"], second["state"], second["pid"]) == ("vm", "stopped", None)
    text = command.run("list")[1]
    (line,) = [line for line in text.splitlines() if line.startswith("two ")]
    assert line.split()[1:3] == ["running", str(process.pid)]
    assert line.split()[4:6] == ["1", "16M"]
    code, text = command.run("forget", "two")
    assert code == 39, text
    assert command.run("forget", "vm")[0] == 0
    assert not (tmp_path / "vllmd-hypervisor/vm").exists()
    assert command.run("status", "vm")[0] == 4
    assert command.run("stop", "--now")[0] == 0
    finish(process)


@pytest.mark.parametrize("how", ["kernel", "image", "console"])
def test_a_start_that_fails_leaves_no_folder(tmp_path, how):
    command = Command(tmp_path)
    if how == "kernel":
        (tmp_path / "guest.elf").write_bytes(b"no kernel" * 100)
    elif how == "image":
        other = Command(tmp_path, HALT, NAME="other")
        process = other.start()
        command.set(NAME="vm")
    else:
        command.set(CONSOLE=f"socket={tmp_path}/nowhere/console")
    assert command.run("start")[0] in (2, 38, 39)
    assert not (tmp_path / "vllmd-hypervisor/vm").exists()
    assert command.run("status")[0] == 4
    if how == "image":
        other.run("stop", "--now", "other")
        finish(process)


def test_a_guest_that_ran_is_remembered(tmp_path):
    command = Command(tmp_path, FAULT)
    assert command.run("start")[0] == 33
    assert command.run("status")[0] == 3
    (tmp_path / "guest.elf").write_bytes(b"no kernel" * 100)
    assert command.run("start")[0] == 2
    assert command.run("status")[0] == 3


@pytest.mark.waits
def test_a_guest_that_does_nothing_but_reset_ends(tmp_path):
    command = Command(tmp_path, RESET)
    code, text = command.run("start", seconds=120)
    assert code == 36, text
    assert "10 times in a row" in text
    code, text = command.run("status")
    assert (code, "(code 36)" in text) == (3, True), text


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_who_may_not_look_says_so(tmp_path):
    """Another user, to whom the folder is closed, does not claim that nothing runs."""
    command = Command(tmp_path)
    assert command.run("start")[0] == 0
    under = ("setpriv", "--reuid=1000", "--regid=1000", "--clear-groups")
    if command.run("--version", under=under)[0] != 0:
        pytest.skip("this checkout is not to be read by others")
    code, text = command.run("status", under=under)
    assert code == 4, text
    assert "no permission to look into" in text
