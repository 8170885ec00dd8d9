"""A vCPU's and a VM's state: captured, applied to the same and to another VM, as plain values."""

from __future__ import annotations

import pytest

from tests.support.guest_asm import RESULT_GPA, Program
from tests.support.tiny_machine import TinyMachine
from vmm._native.host.fd import IoctlError
from vmm._native.kvm.vcpustate import MAY_BE_LEFT_OUT, VcpuState, settle
from vmm._native.kvm.vmstate import VmState, msr_index_list, xsave_size
from vmm._native.memory.ramimage import RamTracker

# inc esi; inc dword [RESULT_GPA]; add [RESULT_GPA], esi, so that a register counts as well
LOOP = "46 ff05{0} 0135{0}".format(RESULT_GPA.to_bytes(4, "little").hex())
COUNTS = [2, 5, 9, 14, 20]
CR0_OFFSET, EFER_OFFSET = 224, 264


@pytest.fixture
def tiny(tmp_path):
    program = Program().raw("31f6")
    start = len(program.code)
    program.raw(LOOP)
    # A power-off ends the run; the vCPU can go on all the same.
    program.out(0x600, 0x34)
    program.raw("e9" + (start - len(program.code) - 5 & 0xFFFFFFFF).to_bytes(4, "little").hex())
    with TinyMachine(tmp_path, bytes(program.code)) as machine:
        yield machine.machine


def run(machine) -> int:
    """One round; the guest's count."""
    machine.vcpus[0].loop.run_here()
    return int.from_bytes(machine.memory.read(RESULT_GPA, 4), "little")


def capture(machine) -> VcpuState:
    assert settle(machine.vcpus[0].fd)
    return VcpuState.capture(
        machine.vcpus[0].fd, msr_index_list(machine.vm.kvm), xsave_size(machine.vm.fd)
    )


def test_restored_it_does_the_same_again(tiny):
    assert [run(tiny), run(tiny)] == COUNTS[:2]
    tracker = RamTracker(tiny.memory)
    state, vm, image = capture(tiny), VmState.capture(tiny.vm.fd), tracker.capture()
    regs = tiny.vcpus[0].fd.get_regs()
    for _ in range(3):
        assert [run(tiny), run(tiny)] == COUNTS[2:4]
        state.apply(tiny.vcpus[0].fd)
        vm.apply(tiny.vm.fd)
        tracker.restore(image)
        assert tiny.vcpus[0].fd.get_regs() == regs
    tracker.close()


def test_what_is_captured_twice_is_the_same(tiny):
    run(tiny)
    state = capture(tiny)
    again = state.capture_again(tiny.vcpus[0].fd).to_state()
    first = state.to_state()
    for clocks in (first, again):
        clocks["msrs"] = [pair for pair in clocks["msrs"] if pair[0] != 0x10]
        clocks["lapic"] = b""  # the timer's current count
    assert first == again


def test_by_way_of_plain_values(tiny):
    run(tiny)
    state = capture(tiny)
    plain = state.to_state()
    assert plain["cpuid"]
    assert plain["tsc_khz"] > 0
    assert len(plain["lapic"]) == 1024
    assert VcpuState.from_state(plain).to_state() == plain
    VcpuState.from_state(plain).apply(tiny.vcpus[0].fd)
    assert run(tiny) == COUNTS[1]
    vm = VmState.capture(tiny.vm.fd).to_state()
    assert VmState.from_state(vm).to_state() == vm
    assert vm["clock_ns"] > 0
    assert vm["realtime_ns"] > 1 << 60


def test_another_vm_goes_on_from_there(tiny, tmp_path):
    assert run(tiny) == COUNTS[0]
    state, vm = capture(tiny), VmState.capture(tiny.vm.fd)
    tracker = RamTracker(tiny.memory)
    image = tracker.capture()
    folder = tmp_path / "other"
    folder.mkdir()
    with TinyMachine(folder, b"\xf4") as other:
        machine = other.machine
        own = RamTracker(machine.memory)
        own.restore(image)
        own.close()
        state.apply(machine.vcpus[0].fd)
        vm.apply(machine.vm.fd)
        assert [run(machine), run(machine)] == COUNTS[1:3]
    assert run(tiny) == COUNTS[1]
    tracker.close()


def test_the_clock_goes_on_or_ahead(tiny):
    run(tiny)
    vm = VmState.capture(tiny.vm.fd)
    vm.apply(tiny.vm.fd, 3600 * 10**9)
    ahead = VmState.capture(tiny.vm.fd).clock_ns - vm.clock_ns
    assert 3600 * 10**9 <= ahead < 3660 * 10**9
    state = capture(tiny)
    before = dict(state.msrs)[0x10]
    state.advance_tsc(10**9)
    assert dict(state.msrs)[0x10] - before == pytest.approx(state.tsc_khz * 1000, rel=1e-6)


def test_an_msr_that_kvm_refuses_is_named(tiny):
    run(tiny)
    plain = capture(tiny).to_state()
    plain["msrs"] = [*plain["msrs"], (0x12345678, 1), (0x10, 5)]
    with pytest.raises(ValueError, match="refuses the value 0x1 for MSR 0x12345678"):
        VcpuState.from_state(plain).apply(tiny.vcpus[0].fd)


def test_an_msr_that_already_holds_the_value_is_no_loss(tiny):
    run(tiny)
    plain = capture(tiny).to_state()
    # Left out by the table: what the host's processor is.
    plain["msrs"] = [(0x10A, (1 << 64) - 1), *plain["msrs"]]
    assert 0x10A in MAY_BE_LEFT_OUT
    VcpuState.from_state(plain).apply(tiny.vcpus[0].fd)
    assert run(tiny) == COUNTS[1]


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("version", 99, "version 1 is needed"),
        ("regs", b"short", "regs has 5 bytes"),
        ("sregs2", 7, "sregs2 must be bytes"),
        ("xsave", b"", "an XSAVE area of 0 bytes"),
        ("msrs", [(1, 2)] * 513, "at most 512 rows"),
        ("msrs", [(1,)], "no row of 2 numbers"),
        ("msrs", [(1 << 32, 0)], "is no MSR"),
        ("msrs", [(1, -1)], "no row of 2 numbers"),
        ("cpuid", [(0,) * 6 + (1 << 32,)], "no row of 7 numbers"),
        ("tsc_khz", 0, "is no frequency"),
    ],
)
def test_a_hostile_state_is_an_error(tiny, key, value, told):
    plain = capture(tiny).to_state()
    with pytest.raises(ValueError, match=told):
        VcpuState.from_state({**plain, key: value})
    with pytest.raises(ValueError, match="missing or unknown"):
        VcpuState.from_state({k: v for k, v in plain.items() if k != key} | {"version": 1, "x": 0})


def test_segments_that_kvm_refuses_are_named(tiny):
    plain = capture(tiny).to_state()
    # Long mode without PAE.
    sregs2 = bytearray(plain["sregs2"])
    sregs2[CR0_OFFSET : CR0_OFFSET + 8] = (1 << 31 | 1).to_bytes(8, "little")
    sregs2[EFER_OFFSET : EFER_OFFSET + 8] = (0x500).to_bytes(8, "little")
    with pytest.raises(IoctlError, match="KVM_SET_SREGS2"):
        VcpuState.from_state({**plain, "sregs2": bytes(sregs2)}).apply(tiny.vcpus[0].fd)


def test_a_hypervisor_inside_is_refused(tiny):
    plain = capture(tiny).to_state()
    sregs2 = bytearray(plain["sregs2"])
    sregs2[EFER_OFFSET + 1] |= 0x10
    with pytest.raises(ValueError, match="runs a hypervisor of its own"):
        VcpuState.from_state({**plain, "sregs2": bytes(sregs2)})


@pytest.mark.parametrize("table", [b"", bytes(7), b"\1" + bytes(7), b"\2" + bytes(7 + 40)])
def test_a_cpuid_table_shorter_than_it_says_is_refused(tmp_path, table):
    with TinyMachine(tmp_path, b"\xf4") as tiny, pytest.raises(ValueError, match="shorter"):
        tiny.machine.vcpus[0].fd.set_cpuid2(table)
