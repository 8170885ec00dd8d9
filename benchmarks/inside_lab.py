"""Inside the lab: one guest under one VMM; prints its figures as a JSON line."""

from __future__ import annotations

import json
import os
import re
import select
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks.peers import QEMU_CPU
from tests.lab.guests.debian import JOB_LABEL, SYSTEM_DISK
from tests.lab.guests.images import make_fat
from tests.lab.guests.job_guest import write_job
from tests.lab.rig.flaw import FlawWatch
from tests.support import binary
from vmm.bench.stdio import opened, read_or_end

SECONDS = 400
MEMORY = "size=512M,shared=on"
MIB = 1 << 20
# Fields 7 and 8 of fio's terse output: read bandwidth in KiB/s, reads a second.
FIO = """
for test in "randread 4k 32" "read 1M 8"; do
  set -- $test
  fio --name=x --filename=/dev/vdb --rw=$1 --bs=$2 --iodepth=$3 --ioengine=libaio --direct=1 \\
    --time_based --runtime=8 --size=256M --minimal 2>/dev/null | tail -n 1 |
    awk -F';' -v t=$1 '{print "figure " t " " $7 " " $8}'
done
"""


def command(
    path: str, kernel: str, initramfs: str, cmdline: str, disks: list[str], memory: str
) -> tuple[list[str], dict[str, str]]:
    """(arguments, environment) with the guest's console on stdout.

    That is hvc0 for a kernel; a firmware (no ``initramfs``) and what it boots use ttyS0.
    """
    if not path:
        return ours(kernel, initramfs, cmdline, disks, memory)
    if "qemu" in path:
        return qemu(path, kernel, initramfs, cmdline, disks)
    if "alioth" in path:
        return alioth(path, kernel, initramfs, cmdline, disks, memory)
    return cloud_hypervisor(path, kernel, initramfs, cmdline, disks, memory)


def ours(
    kernel: str, initramfs: str, cmdline: str, disks: list[str], memory: str
) -> tuple[list[str], dict[str, str]]:
    values = {
        "KERNEL_FILEPATH": kernel, "INITRAMFS_FILEPATH": initramfs, "CMDLINE": cmdline,
        "SYSTEM_IMAGE_FILEPATH": ",".join(disks[:-1]), "CONFIG_IMAGE_FILEPATH": disks[-1],
        "CPU_COUNT": "1", "MEMORY_CONFIG": memory,
        "CONSOLE": "tty" if initramfs else "null", "SERIAL": "null" if initramfs else "tty",
        "LOG_FILEPATH": "/dev/shm/bench.log",
    }  # fmt: skip
    env = {f"VLLMD_HYPERVISOR_{name}": value for name, value in values.items()}
    return [binary.command(), "start"], env


def qemu(
    path: str, kernel: str, initramfs: str, cmdline: str, disks: list[str]
) -> tuple[list[str], dict[str, str]]:
    arguments = [
        path, "-accel", "kvm", "-cpu", QEMU_CPU, "-M", "microvm,acpi=on,pcie=on,pic=off,pit=off",
        "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-m", "512M",
        "-smp", "1", "-kernel", kernel, "-initrd", initramfs, "-append", cmdline,
        "-object", "memory-backend-memfd,id=m,size=512M,share=on", "-machine",
        "memory-backend=m", "-device", "virtio-serial-pci", "-chardev", "stdio,id=c",
        "-device", "virtconsole,chardev=c",
    ]  # fmt: skip
    for number, disk in enumerate(disks):
        # A tmpfs has no O_DIRECT.
        cache = "none" if disk == SYSTEM_DISK else "writeback"
        arguments += [
            "-object", f"iothread,id=t{number}", "-drive",
            f"file={disk},if=none,id=d{number},format=raw,aio=io_uring,cache={cache}",
            "-device", f"virtio-blk-pci,drive=d{number},iothread=t{number}",
        ]  # fmt: skip
    return arguments, {}


def cloud_hypervisor(
    path: str, kernel: str, initramfs: str, cmdline: str, disks: list[str], memory: str
) -> tuple[list[str], dict[str, str]]:
    ends = ["--serial", "off", "--console", "tty", "--initramfs", initramfs, "--cmdline", cmdline]
    if not initramfs:
        ends = ["--serial", "tty", "--console", "off"]
    arguments = [
        path, "--kernel", kernel, *ends, "--cpus", "boot=1", "--memory", memory,
        "--disk",
    ]  # fmt: skip
    return arguments + [f"path={disk},image_type=raw" for disk in disks], {}


def alioth(
    path: str, kernel: str, initramfs: str, cmdline: str, disks: list[str], memory: str
) -> tuple[list[str], dict[str, str]]:
    """It has no console but ttyS0, and must be told that private memory be in huge pages."""
    backend = "backend=memfd" if "shared=on" in memory else "backend=anon,thp=true"
    arguments = [
        path, "boot", "--kernel", kernel, "--initramfs", initramfs, "--cmdline",
        cmdline.replace("hvc0", "ttyS0"), "--cpu", "count=1", "--memory", f"size=512M,{backend}",
    ]  # fmt: skip
    for disk in disks:
        arguments += ["--blk", f"file,path={disk},api=iouring"]
    return arguments, {}


def run(
    what: str, vmm: str, path: str, kernel: str, initramfs: str = "", memory: str = MEMORY
) -> None:
    """Start the guest and print ``{"seconds": …}``, or fio's figures."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        folder = Path(name)
        config = folder / "config.img"
        if what == "linux":
            write_job(config, "poweroff -f\n")
            (folder / "system.img").write_bytes(bytes(MIB))
            disks = [str(folder / "system.img"), str(config)]
            cmdline, awaited = "console=hvc0 quiet panic=-1", "guest: user space reached"
        else:
            script = "systemctl poweroff\n"
            disks = [SYSTEM_DISK, str(config)]
            if what == "fio":
                script = FIO + script
                data = folder / "data.img"
                data.write_bytes(os.urandom(MIB) * 256)
                disks.insert(1, str(data))
            make_fat(config, {"run": script.encode()}, label=JOB_LABEL)
            cmdline = "console=hvc0 root=LABEL=root ro quiet panic=-1" if initramfs else ""
            awaited = "guest: multi-user reached"
        arguments, env = command(path, kernel, initramfs, cmdline, disks, memory)
        # Alioth does not start where stdin is no terminal.
        seconds, text = watch(arguments, env, awaited, terminal="alioth" in path)
    if what == "fio":
        figures = re.findall(r"figure (\w+) (\d+) (\d+)", text)
        found = {test: (float(rate), float(iops)) for test, rate, iops in figures}
        rows = {"randread iops": found["randread"][1], "read MB/s": found["read"][0] * 1024 / 1e6}
        print(json.dumps(rows))
    else:
        print(json.dumps({"seconds": seconds}))


def watch(
    arguments: list[str], env: dict[str, str], awaited: str, terminal: bool = False
) -> tuple[float, str]:
    """Seconds from exec to ``awaited``, and all output once the VMM has ended."""
    reader, writer = opened(terminal)
    started = time.monotonic()
    process = subprocess.Popen(
        arguments, env={**os.environ, **env}, stdin=writer if terminal else subprocess.DEVNULL,
        stdout=writer, stderr=subprocess.STDOUT,
    )  # fmt: skip
    os.close(writer)
    flaw = FlawWatch()
    text = ""
    reached = 0.0
    try:
        while time.monotonic() - started < SECONDS:
            flaw.check()
            if not select.select([reader], [], [], 0.5)[0]:
                continue
            if not (data := read_or_end(reader)):
                break
            text += data.decode(errors="replace")
            if not reached and awaited in text:
                reached = time.monotonic() - started
    finally:
        process.kill()
        process.wait()
        os.close(reader)
    if not reached:
        raise AssertionError(f"{arguments[0]}: never {awaited!r}\n{text[-3000:]}")
    return reached, text
