"""Run control: what run(), step(), start() and pause() do with a tiny guest, and what is left."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time

import numpy
import pytest

import vmm
from tests.support.elf_builder import LOAD_GPA
from tests.support.guest_asm import Program
from tests.support.speed import patience
from tests.support.tiny_guest import tiny_guest
from tests.support.two_vcpus import AP_CODE, wake_others

HELLO = Program().out_string(0x3F8, b"hello, script\n")
FOR_EVER = b"\xeb\xfe"
HALTED_WITH_INTERRUPTS = b"\xfb\xf4\xeb\xfd"


@pytest.fixture
def ctrl_c():
    """Python's own handler: a job in the background of a shell begins with the signal ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt_soon(seconds: float = 0.1) -> None:
    threading.Timer(seconds, lambda: os.kill(os.getpid(), signal.SIGINT)).start()


def open_things() -> tuple[int, int]:
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))


def test_a_guest_says_its_word_and_ends(tmp_path):
    with tiny_guest(tmp_path, HELLO.power_off()) as guest:
        stop = guest.run(seconds=patience(10))
        assert (stop.kind, stop.outcome.kind) == ("ended", "shutdown")
        assert guest.serial.text == "hello, script\n"
        assert guest.console.bytes == b""
        with pytest.raises(RuntimeError, match="has ended .shutdown"):
            guest.run()
    assert guest.serial.text == "hello, script\n"


@pytest.mark.parametrize("code", [FOR_EVER, HALTED_WITH_INTERRUPTS], ids=["busy", "halted"])
def test_a_time_out_leaves_it_intact(tmp_path, code):
    with tiny_guest(tmp_path, code) as guest:
        for _ in range(3):
            started = time.monotonic()
            assert guest.run(seconds=0.1).kind == "timeout"
            assert 0.09 < time.monotonic() - started < patience(5)


@pytest.mark.parametrize("code", [FOR_EVER, HALTED_WITH_INTERRUPTS], ids=["busy", "halted"])
@pytest.mark.parametrize("count", [1, 2])
def test_ctrl_c_stops_a_run_and_the_guest_goes_on_later(tmp_path, ctrl_c, code, count):
    with tiny_guest(tmp_path, code, cpu_count=count) as guest:
        for _ in range(3):
            interrupt_soon()
            stop = guest.run(seconds=patience(20))
            assert (stop.kind, stop.reason) == ("interrupted", "Ctrl-C")
        assert guest.run(seconds=0.05).kind == "timeout"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_handler_of_another_signal_may_raise(tmp_path):
    def late(number, frame):
        raise TimeoutError("the alarm")

    before = signal.signal(signal.SIGALRM, late)
    try:
        with tiny_guest(tmp_path, FOR_EVER) as guest:
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            with pytest.raises(TimeoutError, match="the alarm"):
                guest.run(seconds=patience(20))
            assert guest.run(seconds=0.05).kind == "timeout"
    finally:
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("count", [1, 2])
def test_in_the_background(tmp_path, count):
    with tiny_guest(tmp_path, FOR_EVER, cpu_count=count) as guest:
        guest.start()
        assert guest.running
        with pytest.raises(RuntimeError, match=r"runs already"):
            guest.start()
        with pytest.raises(RuntimeError, match=r"pause\(\) it first"):
            guest.run()
        with pytest.raises(RuntimeError, match=r"pause\(\) it first"):
            _ = guest.cpus[0].regs.rip
        stop = guest.pause()
        assert (stop.kind, guest.running) == ("paused", False)
        assert guest.cpus[0].address == LOAD_GPA
        guest.start()


def test_steps_are_instructions(tmp_path):
    with tiny_guest(tmp_path, b"\x90\x90\xb8\x01\x00\x00\x00" + FOR_EVER) as guest:
        places = [guest.step().address - LOAD_GPA for _ in range(5)]
        assert places == [1, 2, 7, 7, 7]
        assert guest.cpus[0].regs.rax == 1
        assert guest.step(100).kind == "step"


def test_one_of_two_vcpus_steps(tmp_path):
    program = wake_others(Program()).raw("ebfe")
    with tiny_guest(tmp_path, bytes(program.code), cpu_count=2) as guest:
        guest.memory.write(AP_CODE, b"\x90\x90" + FOR_EVER)
        other = guest.breakpoint(AP_CODE)
        assert guest.run(seconds=patience(10)).cpu == 1
        other.remove()
        first = guest.cpus[0].address
        assert guest.step(cpu=1).address == AP_CODE + 1
        assert guest.step(3, cpu=1).address == AP_CODE + 2
        assert guest.cpus[0].address == first


def test_registers_are_written_before_it_runs(tmp_path):
    with tiny_guest(tmp_path, FOR_EVER) as guest:
        regs = guest.cpus[0].regs
        regs.rax, regs.rip = -2, LOAD_GPA + 1
        guest.memory.write(LOAD_GPA + 1, b"\xff\xc0" + FOR_EVER)  # inc eax
        guest.step()
        assert regs.rax == 0xFFFFFFFF
        assert guest.cpus[0].address == LOAD_GPA + 3
        with pytest.raises(AttributeError, match="no register 'eip'"):
            regs.eip = 1
        with pytest.raises(ValueError, match="rbx=0x1"):
            regs.rbx = 1 << 64
        guest.cpus[0].sregs.cr2 = 0x1234
        guest.step()
        assert guest.cpus[0].sregs.cr2 == 0x1234
        with pytest.raises(KeyError, match="MSR 0x12345678"):
            _ = guest.cpus[0].msrs[0x12345678]
        assert len(guest.cpus[0].lapic) == 1024


def test_state_beyond_the_registers(tmp_path):
    with tiny_guest(tmp_path, FOR_EVER) as guest:
        cpu = guest.cpus[0]
        guest.step(2)
        assert (cpu.fpu["fcw"], cpu.fpu["mxcsr"], len(cpu.xsave)) == (0x37F, 0x1F80, 4096)
        area = bytearray(cpu.xsave)
        area[160:164] = b"abcd"
        area[512] |= 3  # XSTATE_BV: x87 and SSE are in it
        cpu.xsave = bytes(area)
        assert cpu.fpu["xmm"][0] == int.from_bytes(b"abcd", "little")
        events = cpu.events
        assert events["exception"]["injected"] == events["nmi"]["pending"] == 0
        cpu.events = {"nmi": {**events["nmi"], "masked": 1}}
        assert cpu.events["nmi"]["masked"] == 1
        with pytest.raises(ValueError, match="no such group of events: 'smm'"):
            cpu.events = {"smm": {}}


def test_ram_as_bytes_and_arrays(tmp_path):
    with tiny_guest(tmp_path, FOR_EVER) as guest:
        ram = guest.memory.numpy(0x200000, (4, 8), "<u4")
        ram[1, 2] = 0xDEADBEEF
        assert guest.memory.read(0x200000 + 4 * 10, 4) == b"\xef\xbe\xad\xde"
        guest.memory.write(0x300000 - 2, b"needle")
        assert list(guest.memory.find(b"needle")) == [0x300000 - 2]
        assert isinstance(ram, numpy.ndarray)
        with pytest.raises(ValueError, match=r"is not inside guest RAM \[0x0, 0x1000000\)"):
            guest.memory.numpy(0xFFF000, 8192)
    assert ram[1, 2] == 0xDEADBEEF


@pytest.mark.parametrize("count", [1, 2])
def test_expect_lets_it_run_and_stands_still_again(tmp_path, count):
    program = Program()
    # echo: wait for a byte on COM1, send it back
    program.raw("66bafd03 ec a801 74fb 66baf803 ec ee eb ef")
    with tiny_guest(tmp_path, bytes(program.code), cpu_count=count) as guest:
        guest.serial.write("login: root")
        assert guest.serial.expect(r"(\w+): ", patience(10))[1] == b"login"
        assert guest.serial.expect("root", patience(10))
        assert not guest.running
        guest.start()
        guest.serial.write("again")
        assert guest.serial.expect("again", patience(10))
        with pytest.raises(TimeoutError, match=r"'never' did not come within 0.1 s.*again"):
            guest.serial.expect("never", 0.1)
        assert guest.running
        guest.serial.write("x" * 10000 + "END")
        assert guest.serial.expect("x{1000}END", patience(60))
        assert guest.serial.text.count("x") == 10000


def test_expect_of_a_guest_that_ends_before(tmp_path):
    with (
        tiny_guest(tmp_path, HELLO.power_off()) as guest,
        pytest.raises(RuntimeError, match="stopped before: ended"),
    ):
        guest.serial.expect("goodbye", patience(10))


def test_what_kvm_cannot_emulate_is_a_stop_with_a_report(tmp_path):
    with tiny_guest(tmp_path, bytes.fromhex("d935000000d0 f4")) as guest:
        stop = guest.run(seconds=patience(10))
        assert (stop.kind, stop.outcome.kind) == ("ended", "crash")
        assert "internal error" in stop.reason
        assert "code at rip" in stop.outcome.report
        assert guest.cpus[0].address == LOAD_GPA


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kernel": "/nonexistent"}, "/nonexistent: no such file"),
        ({"kernel": "/tmp"}, "KERNEL_FILEPATH=/tmp: it is not a regular file"),
        ({"kernel": "/etc/hostname", "initramfs": "/dev"}, "/dev: it is not a regular file"),
        ({"kernel": "/etc/hostname", "system_image": "/tmp"}, "neither a file nor a block"),
        ({"kernel": "/etc/hostname", "serial": "file=/etc/hostname"}, "it is the same file"),
        ({"kernel": "k", "cpus": 2}, "no setting 'cpus'"),
        ({"kernel": "k", "cpu_count": 0}, "CPU_COUNT=0"),
        ({"kernel": "k", "memory": "1M"}, "size=1"),
        ({}, "KERNEL_FILEPATH is not set"),
        ({"kernel": "/dev/null", "system_image": "/nonexistent.img"}, "/nonexistent.img"),
    ],
)
def test_bad_values_have_the_words_of_the_command(settings, words):
    before = open_things()
    with pytest.raises(vmm.VmmError, match=words):
        vmm.Guest(**settings)
    gc.collect()
    assert open_things() == before


def test_nothing_is_left(tmp_path):
    def use(count):
        with tiny_guest(tmp_path, FOR_EVER, cpu_count=count) as guest:
            guest.run(seconds=0.01)
            guest.start()

    use(1)
    use(2)
    gc.collect()
    before = open_things(), guest_mappings()
    for count in (1, 2, 3):
        use(count)
    gc.collect()
    assert (open_things(), guest_mappings()) == before


def guest_mappings() -> int:
    with open("/proc/self/maps", encoding="ascii") as file:
        return sum(1 for line in file if "memfd:" in line or "kvm" in line)


def test_several_guests_in_one_process(tmp_path):
    for name in "abc":
        (tmp_path / name).mkdir()
    guests = [
        tiny_guest(tmp_path / name, Program().out_string(0x3F8, name.encode()).power_off())
        for name in "abc"
    ]
    try:
        for guest in guests:
            guest.start()
        stops = [guest.wait(patience(10)) for guest in guests]
        assert [stop.outcome.kind for stop in stops] == ["shutdown"] * 3
        assert [guest.serial.text for guest in guests] == ["a", "b", "c"]
    finally:
        for guest in guests:
            guest.close()


def test_a_pipe_in_place_of_a_file_is_not_waited_for(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for use in (
        lambda: vmm.Guest(kernel=pipe),
        lambda: vmm.Guest.load(pipe),
        lambda: vmm.Guest.load(tmp_path),
        lambda: vmm.Guest.load("/dev/zero"),
    ):
        with pytest.raises(vmm.VmmError, match="it is not a regular file"):
            use()


def test_what_a_start_warns_of_a_script_hears_too(tmp_path):
    with (
        pytest.warns(UserWarning, match="MEMORY_CONFIG: blanks at the value's ends"),
        tiny_guest(tmp_path, FOR_EVER, memory=" size=16M "),
    ):
        pass


@pytest.mark.parametrize("write", ["dump", "save"])
def test_no_device_or_pipe_is_replaced_by_a_file(tmp_path, write):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with tiny_guest(tmp_path, FOR_EVER) as guest:
        snapshot = guest.snapshot()
        for path in (pipe, tmp_path):
            with pytest.raises(vmm.HostError, match="is no regular file"):
                guest.dump(path) if write == "dump" else snapshot.save(path)
    assert pipe.is_fifo()
    assert {path.name for path in tmp_path.iterdir()} == {"pipe", "guest.elf"}


def test_what_a_script_may_mistake(tmp_path):
    with tiny_guest(tmp_path, FOR_EVER) as guest:
        for mistake, error, words in (
            (lambda: guest.step(1, cpu=3), ValueError, "cpu=3: this guest has 0 to 0"),
            (lambda: guest.breakpoint(None), TypeError, "neither a symbol's name nor an address"),
            (lambda: guest.watch(0x1000, 0), ValueError, "size=0"),
            (lambda: guest.restore(None), TypeError, "a Snapshot is needed"),
            (lambda: guest.snapshot().diff(guest), TypeError, "a Snapshot is needed"),
        ):
            with pytest.raises(error, match=words):
                mistake()
        with pytest.raises(vmm.ConfigError, match="devices: 5 is neither"):
            vmm.Guest(kernel=guest.config.kernel_path, devices=[5])


def test_from_env(tmp_path):
    with tiny_guest(tmp_path, FOR_EVER):
        pass
    environment = {
        "VLLMD_HYPERVISOR_KERNEL_FILEPATH": str(tmp_path / "guest.elf"),
        "VLLMD_HYPERVISOR_CPU_COUNT": "2",
        "VLLMD_HYPERVISOR_MEMORY_CONFIG": "size=8M",
        "PATH": "/bin",
    }
    with vmm.Guest.from_env(environment) as guest:
        assert (len(guest.cpus), guest.memory.size) == (2, 8 << 20)
        assert guest.run(seconds=0.01).kind == "timeout"
