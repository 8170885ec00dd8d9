"""VFIO failing on purpose under real devices: a clear error or a degraded run, no leak."""

from __future__ import annotations

import gc
import os
import select
import tempfile
from collections.abc import Callable
from pathlib import Path

from devices.vfio import dma
from tests.kvm.test_pci import cf8_write
from tests.lab.guests.guest_run import expect
from tests.lab.guests.job_guest import write_job
from tests.lab.rig.flaw import FlawWatch, StillWatch
from tests.lab.scenarios.edu import IDENTITY
from tests.lab.scenarios.passthrough import EDU, NVME, NVME_JOB, bind, facts, find, name_of
from tests.support.guest_asm import Program
from tests.support.speed import patience
from tests.support.tiny_machine import TinyMachine
from tests.support.vfio_faults import DeviceFaults, Faults, FaultyKernel, Holdings
from vmm.errors import HostError
from vmm.host.console import HostConsole
from vmm.host.disk import open_disks
from vmm.machine import build_machine
from vmm.settings.config import PREFIX, Config

EDU_IDENTITY = 0xED
CHUNK = 4 << 20
LINUX_SECONDS = 240
VECTORS = 2
FIRST = """
for try in 1 2 3 4 5 6 7 8 9 10; do [ -b /dev/nvme0n1 ] && break; sleep 1; done
echo "guest: first $(dd if=/dev/nvme0n1 bs=1M count=4 2>/dev/null | md5sum | cut -d' ' -f1)"
"""


def build(folder: Path, faults: Faults, device: str) -> TinyMachine:
    return TinyMachine(
        folder, b"\xf4", FaultyKernel(faults), DEVICE_FILEPATH_LIST=device,
        MEMORY_CONFIG="size=32M",
    )  # fmt: skip


def refused(folder: Path, faults: Faults, device: str, *words: str) -> None:
    """The machine is not built; the error says these words."""
    try:
        tiny = build(folder, faults, device)
    except HostError as error:
        text = str(error)
    else:
        tiny.close()
        raise AssertionError(f"{vars(faults)}: the machine was built")
    expect(all(word in text for word in words), f"{words} in {text}")
    expect(faults.happened, f"{vars(faults)} did not happen: {text}")
    print(f"{faults.happened[0]}: {text}")


def identity(tiny: TinyMachine) -> tuple[int, dict[str, object]]:
    """What a guest reads in the device's first register, and the function's status."""
    (function,) = tiny.machine.passed_through()
    program = Program()
    cf8_write(program, function.slot, 4, 6, 2)
    read = program.read(function.bars[0].value + IDENTITY)
    tiny.load(program.power_off())
    outcome = tiny.run(60)
    expect(outcome.kind == "shutdown", f"{outcome.reason}\n{outcome.report}")
    return tiny.results(program)[read], function.status()


def runs(folder: Path, faults: Faults, device: str) -> dict[str, object]:
    """The machine is built and its guest reaches the device all the same."""
    with build(folder, faults, device) as tiny:
        value, status = identity(tiny)
    expect(value & 0xFF == EDU_IDENTITY, f"{vars(faults)}: identity {value:#x}")
    return status


def third_chunk(folder: Path, device: str) -> None:
    chunk, dma.CHUNK_BYTES = dma.CHUNK_BYTES, CHUNK
    try:
        refused(folder, Faults(map_dma=3), device, "guest RAM [0x", "LimitMEMLOCK=")
    finally:
        dma.CHUNK_BYTES = chunk


def failing_reset(folder: Path, device: str) -> None:
    status = runs(folder, Faults(reset=True), device)
    expect("failed: " in str(status["reset"]), str(status))


def all_ones(folder: Path, device: str) -> None:
    refused(folder, Faults(reads_ones="config"), device, find(EDU), "does not answer")
    refused(folder, Faults(reads_ones="bar"), device, find(EDU), "BAR 0", "all ones")


def a_device_that_vanishes(folder: Path, device: str) -> None:
    """Its registers read as ones, the guest goes on, and the machine can be taken apart."""
    with build(folder, Faults(mmap=True), device) as tiny:
        (function,) = tiny.machine.passed_through()
        assert isinstance(function.device, DeviceFaults)
        function.device.vanish()
        value, _ = identity(tiny)
    expect(value & 0xFFFFFFFF == 0xFFFFFFFF, f"a device that is gone answers {value:#x}")


def refused_mapping(folder: Path, device: str) -> None:
    faults = Faults(mmap=True)
    status = runs(folder, faults, device)
    expect(faults.happened == ["mmap"], str(faults.happened))
    bar = status["bars"][0]  # type: ignore[index]
    expect(bar["mapped_bytes"] == 0 and bar["trapped_accesses"] > 0, str(bar))


CASES: list[Callable[[Path, str], None]] = [
    third_chunk, failing_reset, all_ones, a_device_that_vanishes, refused_mapping,
]  # fmt: skip


def faults_of_edu(form: str) -> None:
    """Every fault, then the same machine without any; the process has what it had before."""
    bdf = find(EDU)
    bind(bdf)
    device = name_of(bdf, form)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        folder = Path(name)
        runs(folder, Faults(), device)
        gc.collect()
        before = Holdings()
        for case in CASES:
            case(folder, device)
            gc.collect()
            left = Holdings().more_than(before)
            expect(not left, f"{case.__name__} left behind: {left}")
        runs(folder, Faults(), device)


def fewer_vectors(kernel: str, initramfs: str, md5: str, form: str) -> None:
    """A Linux guest's NVMe of many vectors gets two: it works, and `status` says so."""
    bdf = find(NVME)
    bind(bdf)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        folder = Path(name)
        with build(folder, Faults(), name_of(bdf, form)) as tiny:  # loads what is loaded once
            tiny.load(Program().power_off())
            tiny.run(60)
        gc.collect()
        before = Holdings()
        faults = Faults(vectors=VECTORS)
        status, text = linux(folder, faults, kernel, initramfs, name_of(bdf, form))
        gc.collect()
        left = Holdings().more_than(before, slack=64 << 20)
    expect(set(faults.happened) == {"vectors"}, f"{faults.happened}\n{text}")
    seen = facts(text)
    expect(seen.get("first") == md5, f"{md5}\n{text}")
    expect(seen.get("wrote") == seen.get("back") and seen.get("wrote"), text)
    interrupts = status["interrupts"]
    expect(interrupts["messages_used"] == ["msix"], str(interrupts))  # type: ignore[index]
    expect(not left, f"left behind: {left}")


def linux(
    folder: Path, faults: Faults, kernel: str, initramfs: str, device: str
) -> tuple[dict[str, object], str]:
    """The NVMe job with these faults: (the function's status at its end, the console)."""
    system = folder / "system.img"
    with open(system, "wb") as file:
        file.truncate(16 << 20)
    values = {
        "KERNEL_FILEPATH": kernel, "INITRAMFS_FILEPATH": initramfs, "CPU_COUNT": 1,
        "MEMORY_CONFIG": "size=256M", "DEVICE_FILEPATH_LIST": device,
        "SYSTEM_IMAGE_FILEPATH": system,
        "CONFIG_IMAGE_FILEPATH": write_job(folder / "job.img", FIRST + NVME_JOB),
        "CMDLINE": "console=ttyS0 quiet panic=-1",
    }  # fmt: skip
    config = Config.from_env({PREFIX + name: str(value) for name, value in values.items()})
    disks = open_disks(config.system_images, config.config_images)
    console = HostConsole("null")
    serial = HostConsole("file", str(folder / "serial"))
    serial.start("serial")
    machine = build_machine(config, disks, console, serial, vfio_kernel=FaultyKernel(faults))
    try:
        (function,) = machine.passed_through()
        machine.start()
        poll = select.poll()
        poll.register(machine.outcome_fd, select.POLLIN)
        connected = set()
        faulting = FlawWatch()
        still = StillWatch(
            lambda: (folder / "serial").read_text(errors="replace"), machine.snapshots
        )
        for _ in range(int(patience(LINUX_SECONDS)) * 5):
            if poll.poll(200):
                break
            faulting.check()
            still.check()
            connected.add(function.interrupts.status()["messages_connected"])
        else:
            print("\n".join(machine.snapshots()))
            machine.stop_vcpus()
        expect(VECTORS in connected, f"connected at some time: {connected}")
        status = function.status()
    finally:
        machine.close()
        serial.port.stop()
        text = (folder / "serial").read_text(errors="replace").replace("\r", "")
        print(text[-2000:])
        serial.close()
        console.close()
        for disk in disks:
            disk.close()
        os.unlink(folder / "serial")
    return status, text
