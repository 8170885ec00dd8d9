"""KVM's own counts of a guest: those that come to us and those that do not."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tests.support.guest_asm import Program
from tests.support.tiny_machine import TinyMachine
from tests.support.two_vcpus import loop
from vmm.debug.stats import read_stats
from vmm.errors import HostError


def test_the_kernel_counts_at_least_what_came_to_us(tmp_path):
    program = loop(Program(), Program().out(0x1234, 1), 1000)
    with TinyMachine(tmp_path, program.power_off(), CPU_COUNT=2) as tiny:
        before = read_stats(tiny.machine)
        assert tiny.run().kind == "shutdown"
        since = read_stats(tiny.machine) - before
        ours = sum(tiny.machine.exits().values())
    assert len(since.vcpus) == 2
    assert since.vcpus[0]["exits"] >= ours > 1000
    assert since.total["exits"] == sum(vcpu["exits"] for vcpu in since.vcpus)
    assert any(isinstance(value, list) for value in since.vcpus[0].values())
    text = str(since)
    assert any(line.split()[0] == "exits" for line in text.splitlines())
    assert "<td>exits</td>" in since._repr_html_()


def test_a_kvm_without_statistics_says_so():
    def refused() -> int:
        raise OSError(25, "KVM_GET_STATS_FD: Inappropriate ioctl for device")

    machine = SimpleNamespace(vm=SimpleNamespace(fd=SimpleNamespace(get_stats_fd=refused)))
    machine.vcpus = []
    with pytest.raises(HostError, match="no statistics") as caught:
        read_stats(machine)
    assert "5.14" in caught.value.remedy
