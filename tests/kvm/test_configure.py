"""CPUID and MSRs of many vCPUs, with threads beside and without: each has its own."""

from __future__ import annotations

import errno

import pytest

from tests.support.guest_asm import Program
from tests.support.tiny_machine import TinyMachine
from vmm._native.host.fd import IoctlError
from vmm._native.kvm.configure import configure
from vmm._native.kvm.vcpu import pack_cpuid
from vmm._native.kvm.vcpustate import VcpuState
from vmm._native.kvm.vmstate import xsave_size
from vmm.vcpu import configure_all
from vmm.x86.msr import boot_msrs

VCPUS = 20
PAT = 0x277
VALUE = 0x0001040600070406


@pytest.fixture
def machine(tmp_path):
    with TinyMachine(tmp_path, bytes(Program().code), CPU_COUNT=VCPUS) as tiny:
        yield tiny.machine


def state(machine, index: int, msrs=()) -> dict:
    return VcpuState.capture(
        machine.vcpus[index].fd, list(msrs), xsave_size(machine.vm.fd)
    ).to_state()


def of_initial_apic_id(machine, index: int) -> int:
    (leaf,) = [entry for entry in state(machine, index)["cpuid"] if entry[0] == 1]
    return leaf[4] >> 24


def fds(machine) -> list:
    return [vcpu.fd for vcpu in machine.vcpus]


def test_a_machine_has_them(machine):
    assert [of_initial_apic_id(machine, n) for n in range(VCPUS)] == list(range(VCPUS))


@pytest.mark.parametrize("helpers", [0, 1, 3, 100])
def test_each_vcpu_gets_its_own(machine, helpers):
    tables = [pack_cpuid([(1, 0, 0, 0, 100 + n << 24, 0, 0)]) for n in range(VCPUS)]
    assert configure(fds(machine), tables, [(PAT, VALUE)], helpers) == [1] * VCPUS
    assert [of_initial_apic_id(machine, n) for n in range(VCPUS)] == list(range(100, 100 + VCPUS))
    for n in range(VCPUS):
        assert dict(state(machine, n, [PAT])["msrs"])[PAT] == VALUE


def test_what_kvm_refuses_is_counted_and_told(machine):
    table = pack_cpuid([(1, 0, 0, 0, 0, 0, 0)])
    pairs = [(PAT, VALUE), (0xDEAD0000, 1), (PAT, VALUE)]
    assert configure(fds(machine), [table] * VCPUS, pairs, 1) == [1] * VCPUS
    with pytest.raises(Exception, match="vCPU 0: KVM refuses MSR 0xdead0000"):
        configure_all(machine.vcpus, [table] * VCPUS, pairs)


@pytest.mark.parametrize("helpers", [0, 2])
def test_an_error_names_the_ioctl(machine, helpers):
    table = pack_cpuid([(1, 0, 0, 0, 0, 0, 0)])
    machine.vcpus[VCPUS - 1].fd.close()
    with pytest.raises(IoctlError, match="KVM_SET_CPUID2") as caught:
        configure(fds(machine), [table] * VCPUS, boot_msrs(), helpers)
    assert caught.value.errno == errno.EBADF


def test_what_does_not_fit_is_refused(machine):
    table = pack_cpuid([(1, 0, 0, 0, 0, 0, 0)])
    with pytest.raises(ValueError, match="shorter than it says"):
        configure(fds(machine), [table[:-1]] * VCPUS, [], 1)
    with pytest.raises(ValueError, match="shorter"):
        configure(fds(machine), [table] * (VCPUS - 1), [], 1)
    with pytest.raises(ValueError, match="17 MSRs"):
        configure(fds(machine), [table] * VCPUS, [(PAT, VALUE)] * 17, 1)
