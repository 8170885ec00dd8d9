"""A guest runs, ends, crashes, resets; two starts, status, kill -9 and start again."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.command import COMMAND, CRASH, FAULT, HALT, PANIC, RESET, Command, finish
from tests.support.guest_asm import Program


def test_a_guest_runs_and_powers_off(tmp_path):
    command = Command(tmp_path)
    code, text = command.run("start")
    assert code == 0, text
    assert "hello" in text
    code, text = command.run("status", "--json")
    facts = json.loads(text)
    assert code == 3
    assert facts["schema_version"] == 1
    assert facts["state"] == "stopped"
    assert facts["last_exit"]["code"] == 0


def test_one_image_twice_is_refused(tmp_path):
    command = Command(tmp_path)
    command.set(CONFIG_IMAGE_FILEPATH=tmp_path / "system.img")
    code, text = command.run("start")
    assert code == 2
    assert "same image" in text


def test_two_starts_and_two_instances_with_one_image(tmp_path):
    command = Command(tmp_path, HALT)
    process = command.start()
    code, text = command.run("start")
    assert code == 39
    assert f"process {process.pid}" in text
    command.set(NAME="other")
    code, text = command.run("start")
    assert code == 39
    assert f"in use by process {process.pid}" in text
    command.set(NAME="vm")
    assert command.run("status")[0] == 0
    code, text = command.run("stop", "--now")
    assert code == 0, text
    assert finish(process)[0] == 37


def test_status_of_a_running_instance(tmp_path):
    command = Command(tmp_path, HALT)
    process = command.start()
    code, text = command.run("status", "--json")
    facts = json.loads(text)
    assert code == 0
    assert (facts["state"], facts["pid"]) == ("running", process.pid)
    assert facts["memory"]["size"] == 16 << 20
    assert facts["memory"]["backing"] == "anonymous"
    assert facts["memory"]["rss"]["anon"] > 0
    (vcpu,) = facts["vcpus"]
    assert vcpu["running"]
    assert vcpu["cpu_s"] > 0
    assert vcpu["steal_s"] >= 0
    assert [disk["lock"] for disk in facts["disks"]] == ["exclusive", "shared"]
    assert facts["exits"]["io"] >= 3
    assert facts["boot"]["running"] > 0
    command.run("stop", "--now")
    finish(process)


def test_kill_9_and_start_again(tmp_path):
    command = Command(tmp_path, HALT)
    process = command.start()
    process.kill()
    finish(process)
    code, text = command.run("status")
    assert code == 3
    assert "failed" in text
    again = command.start()
    assert json.loads(command.run("status", "--json")[1])["pid"] == again.pid
    command.run("stop", "--now")
    finish(again)


def test_a_guest_that_only_faults_ends_with_registers(tmp_path):
    code, text = Command(tmp_path, FAULT).run("start")
    assert code == 33
    assert "rip=" in text
    assert "3 times in a row" in text


def test_a_crash_ends_with_registers(tmp_path):
    code, text = Command(tmp_path, CRASH).run("start")
    assert code == 33
    assert "internal error" in text
    assert "last exits" in text


@pytest.mark.waits
def test_a_guest_that_only_resets_is_slowed_down_and_can_be_stopped(tmp_path):
    command = Command(tmp_path, RESET)
    process = subprocess.Popen(
        [COMMAND, "start"], env=command.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    time.sleep(3)
    stopped, told = command.run("stop")
    code, text = finish(process)
    assert stopped == 0, told + text
    assert code == 0
    assert 4 <= text.count("reboot ") < 12


@pytest.mark.waits
def test_ram_is_zero_again_after_each_reset(tmp_path):
    """Firmwares keep page tables in memory that nobody clears for them."""
    # Shows a word of RAM as a digit, sets it, resets.
    code = "a100001800 0430 66baf803 ee c7050000180001000000 b0fe e664 f4"
    command = Command(tmp_path, bytes(Program().raw(code).code), LOG_FILEPATH=tmp_path / "log")
    process = subprocess.Popen([COMMAND, "start"], env=command.env, stdout=subprocess.PIPE)
    time.sleep(2)
    command.run("stop")
    text = finish(process)[1]
    assert len(text) >= 3, text
    assert set(text) == {"0"}


def test_a_panic_is_told(tmp_path):
    """With a crash kernel loaded the guest goes on; without one it ends with a code of its own."""
    command = Command(tmp_path, PANIC)
    code, text = command.run("start")
    assert code == 35, text
    assert "its crash kernel takes over" in text
    assert "up\n" in text
    assert "error run.ending: the guest cannot go on: the guest's kernel panicked" in text
    facts = json.loads(command.run("status", "--json")[1])
    assert facts["state"] == "failed"
    assert facts["last_exit"]["code"] == 35


def test_ps_shows_one_command(tmp_path):
    command = Command(tmp_path, HALT)
    process = command.start()
    arguments = Path(f"/proc/{process.pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
    assert arguments == [b"vllmd-hypervisor", b"start"]
    assert Path(f"/proc/{process.pid}/comm").read_text().strip() == "vllmd-hypervisor"[:15]
    command.run("stop", "--now")
    finish(process)
