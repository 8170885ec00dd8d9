"""VLLMD_HYPERVISOR_CPU_PLACEMENT: where the threads of vCPUs are, and what start refuses."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from tests.support.command import HALT, Command, finish
from tests.support.counting_instance import instance, rebooted, resetting
from tests.support.speed import patience
from vmm.host.kvm import open_kvm
from vmm.host.placement import CAP_DISABLE_EXITS
from vmm.settings.placement import EXITS

OURS = sorted(os.sched_getaffinity(0))


def offered() -> list[str]:
    kvm = open_kvm()
    try:
        return [word for word, bit in EXITS.items() if bit & kvm.check_extension(CAP_DISABLE_EXITS)]
    finally:
        kvm.close()


def masks(pid: int, last: str) -> set[tuple[str, str]]:
    """The name of each thread, and the processors that it may run on, once one has that name."""
    deadline = time.monotonic() + patience(20)
    found = _masks(pid)
    while last not in {name for name, _ in found}:
        assert time.monotonic() < deadline
        time.sleep(0.01)
        found = _masks(pid)
    return found


def _masks(pid: int) -> set[tuple[str, str]]:
    found = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        lines = (task / "status").read_text().splitlines()
        facts = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        found.add((facts["Name"], facts["Cpus_allowed_list"]))
    return found


def test_each_vcpu_has_its_processor(tmp_path):
    cpus = OURS[::-1][:2]
    exits = [word for word in offered() if word == "hlt"]
    placement = f"cpus={','.join(map(str, cpus))},realtime=on"
    if exits:
        placement += ",exits=hlt"
    command = Command(
        tmp_path, HALT, CPU_COUNT=len(cpus), CPU_PLACEMENT=placement, DEBUG=1,
        STOP_TIMEOUT_SECONDS="0.2", LOG_FILEPATH=tmp_path / "log",
    )  # fmt: skip
    process = command.start()
    try:
        threads = masks(process.pid, f"vcpu{len(cpus) - 1}")
        facts = json.loads(command.run("status", "--json")[1])
    finally:
        command.run("stop")
        finish(process)
    log = (tmp_path / "log").read_text()
    for index, cpu in enumerate(cpus):
        assert (f"vcpu{index}", str(cpu)) in threads
        assert f"guest: vCPU {index} runs on the host's processors {cpu}" in log
    # Only they: devices and the control thread are where they were. The first vCPU to run begins a
    # thread of KVM's own (kvm-nx-lpage-recovery).
    everywhere = Path("/proc/self/status").read_text().partition("Cpus_allowed_list:\t")[2]
    others = {mask for name, mask in threads if not name.startswith(("vcpu", "kvm-"))}
    assert others == {everywhere.partition("\n")[0]}
    assert facts["placement"] == {
        "cpus": cpus, "node": None, "exits": exits, "realtime": True,
    }  # fmt: skip


def test_a_node_is_that_of_vcpus_and_ram(tmp_path):
    if not Path("/sys/devices/system/node/node0").exists():
        pytest.skip("this kernel has no NUMA nodes")
    command = Command(tmp_path, HALT, CPU_PLACEMENT="node=0", STOP_TIMEOUT_SECONDS="0.2")
    process = command.start()
    try:
        facts = json.loads(command.run("status", "--json")[1])
    finally:
        command.run("stop")
        finish(process)
    assert facts["placement"]["node"] == 0
    assert facts["memory"]["node"] == 0


@pytest.mark.parametrize(
    ("placement", "told", "code"),
    [
        ("cpus=0-1", "cpus=0-1 are 2 processors for 1 vCPUs", 2),
        ("cpus=8191", "this host has no processor 8191", 38),
        ("node=1023", "this host has no node 1023", 38),
        ("node=auto", "no device is passed through", 2),
        ("exits=halt", "unknown word 'halt'", 2),
    ],
)
def test_what_is_refused_is_refused_alike(tmp_path, placement, told, code):
    command = Command(tmp_path, CPU_PLACEMENT=placement)
    for verb in (["check"], ["start", "--dry-run"], ["start"]):
        found, text = command.run(*verb)
        assert found == code, text
        assert told in text


def test_a_processor_that_is_not_ours_is_refused(tmp_path):
    if len(OURS) < 2:
        pytest.skip("one processor only")
    command = Command(tmp_path, CPU_PLACEMENT=f"cpus={OURS[1]}")
    under = ("taskset", "-c", str(OURS[0]))
    for verb in (["check"], ["start", "--dry-run"], ["start"]):
        code, text = command.run(*verb, under=under)
        assert code == 38, text
        assert f"processor {OURS[1]} is not this process's to use" in text


def test_exits_that_this_kvm_lacks_are_refused_alike(tmp_path):
    lacking = [word for word in EXITS if word not in offered()]
    if not lacking:
        pytest.skip("this KVM offers all of them")
    command = Command(tmp_path, CPU_PLACEMENT=f"exits={lacking[0]}")
    for verb in (["check"], ["start", "--dry-run"], ["start"]):
        code, text = command.run(*verb)
        assert code == 38, text
        assert f"exits={lacking[0]}: this host's KVM lets no guest do that itself" in text


def test_a_guest_that_reboots_is_placed_again(tmp_path):
    """By a process that has given up what it did not need any more."""
    placement = f"cpus={OURS[-1]}" + (",exits=hlt" if "hlt" in offered() else "")
    with instance(tmp_path, resetting(), CPU_PLACEMENT=placement) as (command, process):
        facts = rebooted(command, process)
    assert facts["placement"]["cpus"] == [OURS[-1]]
