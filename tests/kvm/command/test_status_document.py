"""Every key of a real `status --json`, alive, dead or never there, is in docs/status-json.md."""

from __future__ import annotations

import json

from tests.support.command import HALT, Command, finish
from tests.support.status_document import is_documented, paths


def told(vm: Command, *words: str) -> dict[str, object]:
    return json.loads(vm.run("status", "--json", *words)[1])


def undocumented(facts: dict[str, object]) -> list[str]:
    return sorted({path for path in paths(facts) if not is_documented(path)})


def test_of_a_life(tmp_path):
    vm = Command(tmp_path, HALT, CPU_COUNT=2, CONSOLE="pty")
    process = vm.start()
    alive = told(vm)
    assert vm.run("stop", "--now")
    finish(process)
    dead = told(vm)
    assert (alive["state"], dead["state"]) == ("running", "failed")
    assert undocumented(alive) == undocumented(dead) == []
    assert len(set(paths(alive))) > 35, "what was looked at is no whole status"
    assert {"vcpus[].cpu_s", "memory.rss.anon", "devices[].slot", "exits.io"} <= set(paths(alive))
    assert {"last_exit.code", "last_exit.reason", "last_exit.time"} <= set(paths(dead))


def test_of_a_state_file(tmp_path):
    vm = Command(tmp_path)
    assert vm.run("start")[0] == 0
    state = json.loads((tmp_path / "vllmd-hypervisor/vm/state.json").read_text())
    assert undocumented(state) == []
