"""The lab: a Debian host with a real KVM, IOMMU and VFIO, in QEMU's software emulation.

QEMU emulates a processor with AMD's virtualisation, so that kvm-amd runs in it, and an IOMMU. The
lab's root is this machine's own file system (9p, read-only, writes go to memory), so the project
and its virtual environment are just there. One lab serves many jobs.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.lab.guests.cache import cached
from tests.lab.guests.initramfs import build_initramfs
from tests.lab.guests.kernels import Kernel
from tests.lab.rig import flaw
from tests.lab.rig.emulator import BINARY as QEMU
from tests.lab.rig.emulator import emulator, iommu
from tests.lab.rig.progress import say
from tests.lab.rig.slots import Slot
from tests.lab.rig.systemd_init import SYSTEMD, SYSTEMD_OPTIONS
from tests.support import speed
from tests.support.speed import patience

ROOT = Path(__file__).resolve().parents[3]
TOOLS = {
    QEMU: "qemu-system-x86",
    "depmod": "kmod",
    "iasl": "acpica-tools",
    "debootstrap": "debootstrap",
    "mkfs.ext4": "e2fsprogs",
    "mkfs.vfat": "dosfstools",
    "mcopy": "mtools",
    "strace": "strace",
    "fio": "fio",
    "lz4": "lz4",
    "zstd": "zstd",
    "systemd-analyze": "systemd-sysv",
    "dbus-daemon": "dbus-user-session",
    "logrotate": "logrotate",
}
MODULES = [
    "virtio_pci", "virtio_blk", "virtio_console", "9pnet_virtio", "9p", "overlay", "kvm-amd",
    "vfio_iommu_type1", "vfio-pci",
]  # fmt: skip
# The emulated IOMMU has no interrupt remapping by default.
ARGUMENTS = {
    "vfio_iommu_type1": "allow_unsafe_interrupts=1",
    "iommufd": "allow_unsafe_interrupts=1",
}
# mount(8) of the host's files: 9p over virtio, cached, because nobody changes them meanwhile.
INIT = """
mkdir -p /lower /overlay
mount -t 9p -o trans=virtio,version=9p2000.L,msize=1048576,cache=loose,ro host /lower ||
  { echo "lab: no host file system"; poweroff -f; }
mount -t tmpfs -o size=90% tmpfs /overlay
mkdir -p /overlay/upper /overlay/work
mount -t overlay -o lowerdir=/lower,upperdir=/overlay/upper,workdir=/overlay/work lab /new
for d in proc sys dev; do mount --move /$d /new/$d; done
ip link set lo up
mkdir -p /new/dev/shm /new/dev/pts
mount -t tmpfs -o size=90% tmpfs /new/dev/shm
mount -t devpts devpts /new/dev/pts
mount -t tmpfs tmpfs /new/run
cat >/new/run/start <<'START'
export HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
for word in $(cat /proc/cmdline); do
  case $word in lab.root=*) root=${word#*=};; lab.python=*) python=${word#*=};; esac
done
cd $root && $python -m tests.lab.rig.agent
START
"""
AGENT = """
chroot /new /bin/sh /run/start
echo o >/new/proc/sysrq-trigger
while :; do sleep 1; done
"""
# QEMU's CMPXCHG16B leaves garbage in the flags now and then: an exit from a guest right behind it
# saves that, and the guest goes on with impossible flags. Kernels do without it where it is absent
# (one of nine small boots failed with it, none of 24 without it).
PROCESSOR = "max,-cx16"
# The command that the suites run, in the lab as well.
COMMAND_VARIABLE = "VLLMD_TEST_COMMAND"
BOOT_SECONDS = 120.0
JOB_SECONDS = 600.0
# The agent says something every 5 s; two labs share two processors with the rest of the tests.
SILENCE_SECONDS = 60.0


class LabError(RuntimeError):
    """The lab itself failed; the text has the end of its console."""


class FlawError(LabError):
    """The emulator lost a guest; ``reason`` says how that was found out."""

    def __init__(self, what: str, output: str) -> None:
        super().__init__(f"{what}: {output}")
        self.reason = flaw.reason_in(output)


class JobResult:
    """Exit status and output of a job."""

    def __init__(self, status: int, output: str) -> None:
        self.status = status
        self.output = output


def missing_for_lab() -> list[str]:
    """Debian packages that are needed and not there."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    return [package for tool, package in TOOLS.items() if shutil.which(tool, path=path) is None]


def lab_initramfs(kernel: Kernel, systemd: bool) -> Path:
    init = INIT + (SYSTEMD if systemd else AGENT)

    def make(path: Path) -> None:
        path.write_bytes(build_initramfs(kernel, MODULES, init, ARGUMENTS))

    content = repr((init, MODULES, ARGUMENTS)).encode()
    version = hashlib.blake2s(content, digest_size=4).hexdigest()
    return cached(f"lab-initramfs-{version}-{kernel.root.name}", make)


class Lab:
    """A running lab; a context manager. ``drives``: host files that become /dev/vda, /dev/vdb, …

    Drives are written to a temporary file, never to the originals. ``verbose`` copies the lab's
    console to stderr. ``extra``: more QEMU arguments. ``kernel``: in place of the ``suite``'s.
    ``systemd``: PID 1 is this machine's systemd, with its journal on the console, in place of a
    shell.
    """

    def __init__(
        self,
        memory: str = "9G",
        cpus: int = 1,
        drives: list[Path] | None = None,
        extra: list[str] | None = None,
        suite: str | None = None,
        verbose: bool = False,
        kernel: Kernel | None = None,
        systemd: bool = False,
    ) -> None:
        missing = [tool for tool in (QEMU, "depmod") if shutil.which(tool) is None]
        if missing:
            packages = " ".join(TOOLS.get(tool, tool) for tool in missing)
            raise LabError(f"the lab cannot start: apt-get install {packages}")
        kernel = kernel or Kernel("linux-image-amd64", suite)
        self.verbose = verbose
        self._folder = tempfile.mkdtemp(prefix="vllmd-lab-")
        self._console = Path(self._folder) / "console"
        address = os.path.join(self._folder, "agent")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(address)
        listener.listen(1)
        listener.settimeout(1)
        qemu = emulator()
        command = [
            # Nobody else ends it when this process is killed.
            "setpriv", "--pdeathsig", "KILL",
            *qemu, "-accel", "tcg,thread=multi,tb-size=1024", "-machine", "q35",
            "-cpu", PROCESSOR, "-smp", str(cpus), "-m", memory, "-device", iommu(qemu),
            "-kernel", str(kernel.image), "-initrd", str(lab_initramfs(kernel, systemd)),
            "-append", "console=ttyS0 panic=-1 mitigations=off nokaslr iommu=on intremap=off quiet "
            f"lab.root={ROOT} lab.python={sys.executable} {SYSTEMD_OPTIONS if systemd else ''}",
            "-virtfs", "local,path=/,security_model=none,mount_tag=host,readonly=on,"
            "multidevs=remap",
            "-nodefaults", "-display", "none", "-no-reboot", "-monitor", "none",
            "-serial", f"file:{self._console}",
            "-device", "virtio-serial-pci", "-chardev", f"socket,id=agent,path={address}",
            "-device", "virtserialport,chardev=agent,name=lab.agent",
        ]  # fmt: skip
        for number, drive in enumerate(drives or []):
            command += [
                "-drive", f"file={drive},if=none,id=drive{number},format=raw,snapshot=on,"
                "cache=unsafe",
                "-device", f"virtio-blk-pci,drive=drive{number}",
            ]  # fmt: skip
        self._slot = Slot()
        self.started = time.monotonic()
        self._process = subprocess.Popen(
            [*command, *(extra or [])], stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT,
            pass_fds=[self._slot.fd],
        )  # fmt: skip
        try:
            self._link = self._accept(listener)
            self._stream = self._link.makefile("rb")
            self._link.settimeout(patience(BOOT_SECONDS))
            ready = self._receive()
        except (OSError, LabError) as error:
            self.close()
            raise LabError(f"the lab did not come up: {error}\n{self.console_tail()}") from error
        finally:
            listener.close()
        say(f"    lab up in {time.monotonic() - self.started:.1f} s ({ready['ready']} s inside)")

    def _accept(self, listener: socket.socket) -> socket.socket:
        while True:
            try:
                return listener.accept()[0]
            except TimeoutError:
                if self._process.poll() is not None:
                    raise LabError(f"QEMU ended with status {self._process.returncode}") from None

    def console_tail(self) -> str:
        """The end of what the lab's kernel said."""
        try:
            return self._console.read_text(errors="replace")[-3000:]
        except OSError:
            return ""

    def _receive(self) -> dict[str, Any]:
        try:
            line = self._stream.readline()
        except OSError as error:
            raise LabError(f"the lab does not answer: {error}\n{self.console_tail()}") from error
        if not line:
            raise LabError(f"the lab went away\n{self.console_tail()}")
        found: dict[str, Any] = json.loads(line)
        return found

    def _perform(self, job: dict[str, Any], echo: bool) -> JobResult:
        self._link.settimeout(patience(SILENCE_SECONDS))
        env = {speed.VARIABLE: str(speed.slowness())}
        if COMMAND_VARIABLE in os.environ:
            env[COMMAND_VARIABLE] = os.path.abspath(os.environ[COMMAND_VARIABLE])
        job = {**job, "env": {**env, **job.get("env", {})}, "timeout": patience(job["timeout"])}
        self._link.sendall(json.dumps(job).encode() + b"\n")
        output = []
        while True:
            message = self._receive()
            if "status" in message:
                return JobResult(message["status"], "".join(output))
            output.append(message["output"])
            if echo or self.verbose:
                sys.stdout.write(message["output"])
                sys.stdout.flush()

    def run(
        self,
        command: list[str],
        env: dict[str, str] | None = None,
        timeout: float = JOB_SECONDS,
        echo: bool = False,
    ) -> JobResult:
        """Run a command as root in the project's folder; ``echo`` streams its output to stdout."""
        result = self._perform({"command": command, "env": env or {}, "timeout": timeout}, echo)
        if result.status == flaw.STATUS:
            raise FlawError(str(command), result.output[-3000:])
        return result

    def call(self, function: str, timeout: float = JOB_SECONDS, **arguments: Any) -> str:
        """Call ``module:name`` in a process of its own; AssertionError with its output."""
        job = {"function": function, "arguments": arguments, "timeout": timeout}
        result = self._perform(job, echo=False)
        if result.status == flaw.STATUS:
            raise FlawError(f"{function}({arguments})", result.output)
        if result.status:
            raise AssertionError(
                f"{function}({arguments}) in the lab: status {result.status}\n{result.output}"
            )
        return result.output

    def shut_down(self, function: str, timeout: float = 120.0, **arguments: Any) -> str:
        """Call a function that shuts the lab down; returns all that its console said.

        AssertionError when the function ends otherwise, or the lab does not switch itself off.
        """
        try:
            told = self.call(function, **arguments)
        except FlawError:
            raise
        except LabError as error:
            try:
                self._process.wait(patience(timeout))
            except subprocess.TimeoutExpired:
                tail = self.console_tail()
                raise AssertionError(f"it did not end: {error}\n{tail}") from error
            return self._console.read_text(errors="replace")
        raise AssertionError(f"{function} came back: {told}")

    def close(self) -> None:
        """End the lab."""
        if hasattr(self, "_link"):
            with contextlib.suppress(OSError):
                self._link.sendall(b'{"quit": true}\n')
            self._stream.close()
            self._link.close()
        try:
            self._process.wait(patience(15) if hasattr(self, "_link") else 0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._slot.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
