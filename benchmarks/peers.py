"""How each VMM is started on the same tiny guest, with its serial port on stdout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

from tests.support.binary import BINARY, command

QEMU_CPU = "host,arch-capabilities=off"
KNOWN_PEERS = ("cloud-hypervisor", "firecracker", "alioth")
SHARED = Path(__file__).resolve().parents[2] / "shared/peers"


class Vmm:
    """A name, and the command and environment for a guest of so many MiB and vCPUs.

    ``problem`` says why there is no command: a row of the table, as other failures are.
    """

    def __init__(
        self, name: str, command: list[str], env: dict[str, str] | None = None, problem: str = ""
    ) -> None:
        self.name = name
        self.command = command
        self.env = {**os.environ, **(env or {})}
        self.problem = problem


def find_peers(given: list[str]) -> dict[str, str]:
    """Paths by name: those given as NAME=PATH, those in the shared folder, those in PATH."""
    found = {}
    for name in KNOWN_PEERS:
        path = SHARED / name
        if path.exists():
            found[name] = str(path)
        elif shutil.which(name):
            found[name] = str(shutil.which(name))
    found.update(dict(item.split("=", 1) for item in given))
    return found


def ours(name: str, program: str, kernel: Path, folder: Path, mib: int, vcpus: int) -> Vmm:
    """The program, on images and with a state of its own."""
    folder = folder / name.replace(" ", "-")
    folder.mkdir(exist_ok=True)
    for image in ("system.img", "config.img"):
        (folder / image).write_bytes(bytes(1 << 20))
    values = {
        "KERNEL_FILEPATH": kernel,
        "SYSTEM_IMAGE_FILEPATH": folder / "system.img",
        "CONFIG_IMAGE_FILEPATH": folder / "config.img",
        "CPU_COUNT": vcpus,
        "MEMORY_CONFIG": f"size={mib}M,shared=on",
        "SERIAL": "tty",
        "CONSOLE": "null",
        "LOG_FILEPATH": folder / "log",
    }
    env = {f"VLLMD_HYPERVISOR_{key}": str(value) for key, value in values.items()}
    env["XDG_RUNTIME_DIR"] = str(folder)
    return Vmm(name, [program, "start"], env)


def bare(kernel: Path, folder: Path, mib: int, vcpus: int) -> Vmm:
    """bare.c: the ioctls of a start, and nothing else."""
    name, program = "C, the same ioctls", folder / "bare"
    if not program.exists():
        source = Path(__file__).with_name("bare.c")
        try:
            subprocess.run(
                ["gcc", "-O2", "-static", "-o", program, source], check=True, capture_output=True
            )
        except FileNotFoundError:
            return Vmm(name, [], problem="no gcc: apt-get install gcc libc6-dev")
        except subprocess.CalledProcessError as error:
            said = error.stderr.decode(errors="replace").strip().splitlines() or ["no word"]
            return Vmm(name, [], problem=f"bare.c does not build: {said[-1]}")
    return Vmm(name, [str(program), str(kernel), str(mib), str(vcpus)])


def qemu(kernel: Path, mib: int, vcpus: int) -> Vmm:
    """QEMU's microvm. It would give up where KVM refuses what it puts into MSR 0x10a."""
    return Vmm(
        "QEMU microvm",
        [
            "qemu-system-x86_64", "-accel", "kvm", "-cpu", QEMU_CPU, "-M",
            "microvm,acpi=on,pcie=on,pic=off,pit=off,isa-serial=on", "-nodefaults",
            "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot",
            "-m", f"{mib}M", "-smp", str(vcpus), "-kernel", str(kernel),
        ],
    )  # fmt: skip


def cloud_hypervisor(path: str, kernel: Path, mib: int, vcpus: int) -> Vmm:
    return Vmm(
        "Cloud Hypervisor",
        [
            path, "--kernel", str(kernel), "--cpus", f"boot={vcpus}", "--memory",
            f"size={mib}M,shared=on", "--serial", "tty", "--console", "off",
        ],
    )  # fmt: skip


def firecracker(path: str, kernel: Path, folder: Path, mib: int, vcpus: int) -> Vmm:
    config = {
        "boot-source": {"kernel_image_path": str(kernel)},
        "drives": [],
        "machine-config": {"vcpu_count": vcpus, "mem_size_mib": mib},
    }
    (folder / "fc.json").write_text(json.dumps(config))
    return Vmm(
        "Firecracker",
        [
            path,
            "--no-api",
            "--enable-pci",
            "--config-file",
            str(folder / "fc.json"),
            "--level",
            "Error",
        ],
    )


def all_vmms(peers: dict[str, str], kernel: Path, folder: Path, mib: int, vcpus: int) -> list[Vmm]:
    vmms = [ours("ours (Python)", command(), kernel, folder, mib, vcpus)]
    if BINARY.exists():
        vmms.append(ours("ours (binary)", str(BINARY), kernel, folder, mib, vcpus))
    vmms.append(bare(kernel, folder, mib, vcpus))
    if shutil.which("qemu-system-x86_64"):
        vmms.append(qemu(kernel, mib, vcpus))
    if "cloud-hypervisor" in peers:
        vmms.append(cloud_hypervisor(peers["cloud-hypervisor"], kernel, mib, vcpus))
    if "firecracker" in peers and mib <= 4096:
        vmms.append(firecracker(peers["firecracker"], kernel, folder, mib, vcpus))
    return vmms
