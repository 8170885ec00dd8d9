"""CPU_PLACEMENT against a host of two nodes, and what is refused by which name."""

from __future__ import annotations

import pytest

from tests.support.fake_host import FakeHost
from vmm.errors import ConfigError, HostError
from vmm.host import placement as host_placement
from vmm.host.finding import OK, PROBLEM, WARNING
from vmm.host.placement import cpu_list, exits_mask, findings, numbers_text, ram, vcpu_processors
from vmm.settings.memory import parse_memory
from vmm.settings.parse import parse_device
from vmm.settings.placement import Placement, parse_placement

NODES = "/sys/devices/system/node"
BDFS = ("0000:01:00.0", "0000:02:00.0")
RAM = parse_memory("size=1G")


class TwoNodes(FakeHost):
    def processors(self) -> set[int]:
        return {0, 1, 2, 4, 5, 6, 7}


@pytest.fixture
def host(tmp_path, monkeypatch):
    class Device:
        def __init__(self, bdf):
            self.bdf = bdf

    monkeypatch.setattr(
        host_placement, "look_up_devices", lambda specs, _: ([Device(s.value) for s in specs], [])
    )
    files = {
        "/sys/devices/system/cpu/online": "0-7\n",
        f"{NODES}/node0/cpulist": "0-3\n",
        f"{NODES}/node1/cpulist": "4-7\n",
    }
    files |= {f"/sys/bus/pci/devices/{bdf}/numa_node": f"{n}\n" for n, bdf in enumerate(BDFS)}
    return TwoNodes(tmp_path, files)


def look(host, text, vcpus=2, devices=(), memory=RAM):
    specs = [parse_device(bdf) for bdf in devices]
    return findings(parse_placement(text), vcpus, specs, memory, host)


@pytest.mark.parametrize(
    ("text", "devices", "told"),
    [
        ("cpus=4,2", (), "cpus=2,4: one for each vCPU"),
        ("node=1", (), "node=1: vCPUs and guest RAM are on node 1"),
        ("node=auto", BDFS[1:], "node=auto: vCPUs and guest RAM are on node 1"),
        ("exits=hlt", (), "no processor and no node"),
    ],
)
def test_what_fits(host, text, devices, told):
    (found,) = look(host, text, devices=devices)
    assert found.level == OK
    assert told in found.found


@pytest.mark.parametrize(
    ("text", "devices", "told", "code"),
    [
        ("cpus=1", (), "cpus=1 are 1 processors for 2 vCPUs", ConfigError.exit_code),
        ("cpus=0-2", (), "cpus=0-2 are 3 processors for 2 vCPUs", ConfigError.exit_code),
        ("cpus=7-8", (), "this host has no processor 8", HostError.exit_code),
        ("cpus=2-3", (), "processor 3 is not this process's to use", HostError.exit_code),
        ("node=2", (), "this host has no node 2", HostError.exit_code),
        ("node=auto", (), "no device is passed through", ConfigError.exit_code),
        ("node=auto", BDFS, "the devices are on several nodes", ConfigError.exit_code),
        ("node=auto", ("0000:03:00.0",), "does not tell the devices' node", ConfigError.exit_code),
    ],
)
def test_what_is_refused(host, text, devices, told, code):
    (found,) = look(host, text, devices=devices)
    assert (found.level, found.code) == (PROBLEM, code)
    assert told in found.found
    assert "CPU_PLACEMENT" in found.found
    assert found.advice


def test_two_nodes_at_once_are_refused(host):
    found = look(host, "node=0", memory=parse_memory("size=1G,host_numa_node=1"))
    assert [f.level for f in found] == [OK, PROBLEM]
    assert "host_numa_node=1 of MEMORY_CONFIG are two nodes" in found[1].found


def test_a_processor_far_from_the_node_is_told(host):
    found = look(host, "cpus=0,4,node=1")
    assert [f.level for f in found] == [OK, OK, WARNING]
    assert "node 1 is not where processor 0 is" in found[2].found


def test_more_vcpus_than_the_node_has_processors(host):
    found = look(host, "node=0", vcpus=4)
    assert found[-1].level == WARNING
    assert "3 processors for 4 vCPUs" in found[-1].found


def test_ram_follows_the_node(host):
    assert ram(RAM, parse_placement("node=1"), (), host).host_numa_node == 1
    assert ram(RAM, parse_placement("node=auto"), (), host).host_numa_node is None
    assert ram(RAM, None, (), host) is RAM


def test_where_vcpus_run():
    assert [vcpu_processors(Placement((5, 3)), index) for index in (0, 1)] == [{5}, {3}]
    assert vcpu_processors(Placement(), 0) is None


class Kvm:
    def __init__(self, offered: int) -> None:
        self.offered = offered

    def check_extension(self, capability: int) -> int:
        assert capability == 143
        return self.offered


def test_exits_that_kvm_does_not_offer():
    assert exits_mask(Kvm(14), parse_placement("exits=pause+hlt")) == 6
    assert exits_mask(Kvm(0), parse_placement("node=0")) == 0
    with pytest.raises(HostError, match=r"exits=mwait: this host's KVM.*it offers hlt\+pause"):
        exits_mask(Kvm(6), parse_placement("exits=hlt+mwait"))
    with pytest.raises(HostError, match="it offers none of them"):
        exits_mask(Kvm(0), parse_placement("exits=hlt"))


@pytest.mark.parametrize("text", ["0", "0-3,8", "1,3,5-7"])
def test_lists_there_and_back(text):
    assert numbers_text(cpu_list(text)) == text


def test_odd_lists():
    assert cpu_list("") == cpu_list("x,3-y") == set()
    assert numbers_text(set()) == "none"
