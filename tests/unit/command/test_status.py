"""`status` and `list` of instances that say anything."""

from __future__ import annotations

import json
import os

import pytest

from vmm.command import status
from vmm.command.describe import describe
from vmm.command.facts import last_exit, number
from vmm.light.jsontext import dumps
from vmm.run.folder import Folder
from vmm.run.instance import FOLDER, Instance

FACTS = {
    "name": "vm", "state": "running", "pid": 7, "started_at": "now", "uptime_s": 1.0,
    "reboots": 1, "kernel": "/k", "memory": {"size": 1 << 20, "hugepage_size": 0, "shared": True},
    "vcpus": [{}], "disks": [{"path": "/d", "size": 1 << 20, "read_only": True}],
    "consoles": [{"kind": "tty", "path": ""}], "exits": {"io": 3},
    "last_exit": {"code": 0, "reason": "off", "time": "now"}, "error": "none",
}  # fmt: skip
ODD = [None, True, -1, 1e300, "", "\x1b[2J\u202e", [], [1], {}, {"a": [[]]}, [None] * 3, "x" * 9999]


def test_as_text():
    text = describe(FACTS)
    assert text.startswith("vm: running, process 7, started now, up 1 s\n")
    assert "not understood" not in text
    assert len(text.splitlines()) == 10


@pytest.mark.parametrize("key", [key for key in FACTS if key not in ("name", "state")])
@pytest.mark.parametrize("value", ODD, ids=repr)
def test_odd_values_are_shown_or_left_out(key, value):
    facts = {**FACTS, key: value}
    for line in describe(facts).split("\n"):
        assert line.isprintable()
        assert len(line) < 5000
    assert dumps(facts).isprintable()


@pytest.mark.parametrize("value", ODD, ids=repr)
def test_odd_facts(value):
    assert number(value, 0, 10, 5.0) == 5.0
    for told in (value, {"code": value, "reason": value, "time": value}):
        last = last_exit({"last_exit": told})
        if last is not None:
            assert last["code"] is None
            assert last["reason"].isprintable()


@pytest.fixture
def dead(tmp_path):
    """A dead instance with that state: dead(facts)."""
    instance = Instance("vm", {"XDG_RUNTIME_DIR": str(tmp_path)})
    instance.acquire()
    instance.release()
    folders = []

    def made(facts: dict) -> Folder:
        instance.write_state({"pid": os.getpid(), **facts})
        folders.append(Folder(str(tmp_path / FOLDER), "vm"))
        return folders[-1]

    yield made
    for folder in folders:
        folder.close()


@pytest.mark.parametrize("key", ["name", "state", "memory", "vcpus", "last_exit", "started_at"])
@pytest.mark.parametrize("value", ODD, ids=repr)
def test_a_list_of_dead_ones_that_left_anything(dead, key, value):
    row = status.row(dead({"state": "stopped", key: value}))
    assert row["name"] == "vm"
    assert row["state"] in ("stopped", "failed")
    assert row["pid"] is None
    assert len(status.table([row]).splitlines()) == 2
    json.loads(dumps(row))


def test_a_list(dead):
    facts = {**FACTS, "state": "stopped", "pid": os.getpid()}
    row = status.row(dead(facts))
    assert (row["cpus"], row["memory"], row["since"]) == (1, 1 << 20, "now")
    head, line = status.table([row]).splitlines()
    assert head.split() == ["NAME", "STATE", "PID", "SINCE", "CPUS", "MEMORY", "FOLDER"]
    assert line.split()[:6] == ["vm", "stopped", "-", "now", "1", "1M"]
