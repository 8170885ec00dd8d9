"""The command as users meet it: exit codes, messages, signals, terminals, locks; tiny guests."""

from __future__ import annotations

import json
import os
import pty
import resource
import signal
import socket
import subprocess
import termios
import time
from pathlib import Path

import pytest

from tests.support.binary import command
from tests.support.elf_builder import build_elf
from tests.support.guest_asm import Program

COMMAND = command()
PREFIX = "VLLMD_HYPERVISOR_"
HELLO = Program().out_string(0x3F8, b"hello\n").power_off()
HALT = bytes(Program().out_string(0x3F8, b"up\n").raw("f4 ebfd").code)
FAULT = bytes(Program().write(0x1000, 0).write(0x1004, 0).raw("0f011d00100000 0f0b").code)
RESET = bytes(Program().out(0x64, 0xFE).raw("f4").code)
PANIC = bytes(Program().out(0x505, 2).out_string(0x3F8, b"up\n").out(0x505, 1).raw("f4").code)
CRASH = bytes(Program().raw("d935000000d0 f4").code)


class Command:
    """The environment of one instance in a folder of its own."""

    def __init__(self, folder: Path, code: bytes = HELLO, **settings: object) -> None:
        self.folder = folder
        (folder / "guest.elf").write_bytes(build_elf(code))
        for name in ("system.img", "config.img"):
            (folder / name).write_bytes(bytes(1 << 20))
        self.env = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "XDG_RUNTIME_DIR": str(folder),
        }
        self.set(
            KERNEL_FILEPATH=folder / "guest.elf", SYSTEM_IMAGE_FILEPATH=folder / "system.img",
            CONFIG_IMAGE_FILEPATH=folder / "config.img", CPU_COUNT=1, MEMORY_CONFIG="size=16M",
            SERIAL="tty", CONSOLE="null", NAME="vm",
        )  # fmt: skip
        self.set(**settings)

    def set(self, **settings: object) -> Command:
        for name, value in settings.items():
            self.env[PREFIX + name] = str(value)
        return self

    def run(
        self, *arguments: str, seconds: float = 30, under: tuple[str, ...] = ()
    ) -> tuple[int, str]:
        """(exit code, stdout and stderr). ``under``: a command that runs it, such as a shell."""
        done = subprocess.run(
            [*under, COMMAND, *arguments], env=self.env, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, timeout=seconds, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout.decode(errors="replace")

    def start(self, **options: object) -> subprocess.Popen[bytes]:
        """In the background, its guest running."""
        process = subprocess.Popen(
            [COMMAND, "start"], env=self.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, **options,
        )  # fmt: skip
        assert process.stdout is not None
        text = b""
        while b"up\n" not in text:
            data = os.read(process.stdout.fileno(), 4096)
            assert data, text
            text += data
        return process


def finish(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    text = process.communicate(timeout=20)[0].decode(errors="replace")
    return process.returncode, text


def test_a_guest_runs_and_powers_off(tmp_path):
    command = Command(tmp_path)
    code, text = command.run("start")
    assert code == 0, text
    assert "hello" in text
    code, text = command.run("status", "--json")
    facts = json.loads(text)
    assert code == 3
    assert facts["schema_version"] == 1
    assert facts["state"] == "stopped"
    assert facts["last_exit"]["code"] == 0


@pytest.mark.parametrize(
    ("settings", "code", "words"),
    [
        ({"CPU_COUNT": "many"}, 2, ["CPU_COUNT=many", "accepted"]),
        ({"CPU_COUNT": "4096"}, 38, ["CPU_COUNT=4096", "KVM allows"]),
        ({"KERNEL_FILEPATH": "/nonexistent"}, 2, ["KERNEL_FILEPATH=/nonexistent", "no such file"]),
        ({"SYSTEM_IMAGE_FILEPATH": "/tmp"}, 2, ["neither a file nor a block device"]),
        ({"MEMORY_CONFIG": "size=900G"}, 38, ["are available", "lower size"]),
        ({"MEMORY_CONFIG": "size=1G,hugepages=on,hugepage_size=1G"}, 38, ["huge pages"]),
        ({"MEMORY_CONFIG": "size=16M,host_numa_node=900"}, 38, ["no such node"]),
        ({"DEVICE_FILEPATH_LIST": "00ff:01:00.0"}, 2, ["no PCI device 00ff:01:00.0"]),
        ({"DEVICE_FILEPATH_LIST": "/dev/vfio/999"}, 2, ["no device is in this IOMMU group"]),
        ({"DEVICE_FILEPATH_LIST": "/dev/vfio/devices/vfio99"}, 2, ["no such VFIO device"]),
        ({"LOG_FILEPATH": "/proc/nowhere/log"}, 38, ["cannot log to /proc/nowhere/log"]),
        ({"CONSOLE": "file=/proc/nowhere/x"}, 38, ["console file"]),
        ({"INITRAMFS_FILEPATH": "/nonexistent"}, 2, ["INITRAMFS_FILEPATH"]),
        ({"CPUCOUNT": "1"}, 2, ["did you mean VLLMD_HYPERVISOR_CPU_COUNT"]),
    ],
)  # fmt: skip
def test_bad_settings(tmp_path, settings, code, words):
    found, text = Command(tmp_path, **settings).run("start")
    assert found == code, text
    for word in words:
        assert word in text
    assert "Traceback" not in text
    found, text = Command(tmp_path, **settings).run("check")
    assert found == code, text
    for word in words:
        assert word in text


def findings(command: Command) -> tuple[int, dict[str, dict]]:
    """`check --json`: exit code, and the problems by name."""
    code, text = command.run("check", "--json")
    report = json.loads(text)
    assert report["exit_code"] == code
    return code, {f["name"]: f for f in report["findings"] if f["level"] == "problem"}


def test_check_before_beside_and_after_a_guest(tmp_path):
    """Nothing wrong; then who runs it and holds its images, with the way to end that."""
    command = Command(tmp_path, HALT, CPU_COUNT=1)
    assert findings(command) == (0, {})
    before = sorted(path.name for path in tmp_path.iterdir())
    process = command.start()
    try:
        code, problems = findings(command)
        assert code == 39
        assert set(problems) == {"instance", "image-lock"}
        assert str(process.pid) in problems["instance"]["found"]
        for finding in problems.values():
            assert finding["cure"] == ["vllmd-hypervisor stop vm"]
            assert not finding["as_root"]
        # An instance of somebody else's: by its process.
        command.env["XDG_RUNTIME_DIR"] = str(tmp_path / "vllmd-hypervisor")
        assert findings(command)[1]["image-lock"]["cure"] == [f"kill {process.pid}"]
        command.env["XDG_RUNTIME_DIR"] = str(tmp_path)
    finally:
        process.kill()
        finish(process)
    assert findings(command) == (0, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [*before, "vllmd-hypervisor", ".cache"]
    )


def test_every_problem_is_told_at_once(tmp_path):
    command = Command(tmp_path, KERNEL_FILEPATH="/no/kernel", SYSTEM_IMAGE_FILEPATH="/no/disk")
    code, text = command.run("start")
    assert code == 2
    assert "/no/kernel" in text
    assert "/no/disk" in text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"#!/bin/sh\n", "a script"),
        (b"QFI\xfb" + bytes(100), "qcow2"),
        (b"MZ" + bytes(5000), "EFI program"),
        (b"\x7fELF" + bytes(200), ""),
        (build_elf(HELLO, note=b""), "PVH"),
        (build_elf(HELLO)[:4100], "cut short"),
    ],
)
def test_files_that_are_no_kernel(tmp_path, content, words):
    command = Command(tmp_path)
    (tmp_path / "guest.elf").write_bytes(content)
    for verb in ("start", "check"):
        code, text = command.run(verb)
        assert code == 2, text
        assert words in text
    assert "Traceback" not in text


def test_one_image_twice_is_refused(tmp_path):
    command = Command(tmp_path)
    command.set(CONFIG_IMAGE_FILEPATH=tmp_path / "system.img")
    code, text = command.run("start")
    assert code == 2
    assert "same image" in text


def test_two_starts_and_two_instances_with_one_image(tmp_path):
    command = Command(tmp_path, HALT)
    process = command.start()
    code, text = command.run("start")
    assert code == 39
    assert f"process {process.pid}" in text
    command.set(NAME="other")
    code, text = command.run("start")
    assert code == 39
    assert f"in use by process {process.pid}" in text
    command.set(NAME="vm")
    assert command.run("status")[0] == 0
    code, text = command.run("stop", "--now")
    assert code == 37, text
    assert finish(process)[0] == 37


def test_status_of_a_running_instance(tmp_path):
    command = Command(tmp_path, HALT)
    process = command.start()
    code, text = command.run("status", "--json")
    facts = json.loads(text)
    assert code == 0
    assert (facts["state"], facts["pid"]) == ("running", process.pid)
    assert facts["memory"]["size"] == 16 << 20
    assert facts["memory"]["backing"] == "anonymous"
    assert facts["memory"]["rss"]["anon"] > 0
    (vcpu,) = facts["vcpus"]
    assert vcpu["running"]
    assert vcpu["cpu_s"] > 0
    assert vcpu["steal_s"] >= 0
    assert [disk["lock"] for disk in facts["disks"]] == ["exclusive", "shared"]
    assert facts["exits"]["io"] >= 3
    assert facts["boot"]["running"] > 0
    command.run("stop", "--now")
    finish(process)


def test_kill_9_and_start_again(tmp_path):
    command = Command(tmp_path, HALT)
    process = command.start()
    process.kill()
    finish(process)
    code, text = command.run("status")
    assert code == 3
    assert "failed" in text
    again = command.start()
    assert json.loads(command.run("status", "--json")[1])["pid"] == again.pid
    command.run("stop", "--now")
    finish(again)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_and_the_timeout_kills(tmp_path, number):
    command = Command(tmp_path, HALT, STOP_TIMEOUT_SECONDS=1)
    process = command.start()
    process.send_signal(number)
    code, text = finish(process)
    assert code == 37
    assert "power button" in text
    assert "within 1 s" in text


def test_a_second_signal_kills_at_once(tmp_path):
    process = Command(tmp_path, HALT, STOP_TIMEOUT_SECONDS=600).start()
    process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert finish(process)[0] == 37


def test_stop_kills_a_vmm_that_hangs(tmp_path):
    command = Command(tmp_path, HALT, STOP_TIMEOUT_SECONDS=0)
    process = command.start()
    process.send_signal(signal.SIGSTOP)
    code, text = command.run("stop", seconds=60)
    assert code == 37
    assert "was killed" in text
    assert finish(process)[0] == -signal.SIGKILL


def test_a_guest_that_only_faults_ends_with_registers(tmp_path):
    code, text = Command(tmp_path, FAULT).run("start")
    assert code == 33
    assert "rip=" in text
    assert "3 times in a row" in text


def test_a_crash_ends_with_registers(tmp_path):
    code, text = Command(tmp_path, CRASH).run("start")
    assert code == 33
    assert "internal error" in text
    assert "last exits" in text


def test_a_guest_that_only_resets_is_slowed_down_and_can_be_stopped(tmp_path):
    command = Command(tmp_path, RESET)
    process = subprocess.Popen(
        [COMMAND, "start"], env=command.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    time.sleep(3)
    stopped, told = command.run("stop")
    code, text = finish(process)
    assert stopped == 0, told + text
    assert code == 0
    assert 4 <= text.count("reboot ") < 12


def test_ram_is_zero_again_after_each_reset(tmp_path):
    """Firmwares keep page tables in memory that nobody clears for them."""
    # Shows a word of RAM as a digit, sets it, resets.
    code = "a100001800 0430 66baf803 ee c7050000180001000000 b0fe e664 f4"
    command = Command(tmp_path, bytes(Program().raw(code).code), LOG_FILEPATH=tmp_path / "log")
    process = subprocess.Popen([COMMAND, "start"], env=command.env, stdout=subprocess.PIPE)
    time.sleep(2)
    command.run("stop")
    text = finish(process)[1]
    assert len(text) >= 3, text
    assert set(text) == {"0"}


def after(step: str) -> tuple[str, ...]:
    """A shell that does something first, and becomes the command that follows."""
    return ("sh", "-c", f'{step} && exec "$0" "$@"')


def test_no_kvm(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("needs root to hide /dev/kvm in a mount namespace")
    command = Command(tmp_path)

    def without(mount: str) -> tuple[int, str]:
        return command.run("start", under=("unshare", "-m", *after(f"mount {mount}")))

    code, text = without("-t tmpfs tmpfs /dev")
    assert code == 38, text
    assert "this host has no KVM" in text
    assert "modprobe" in text
    code, text = without("-B /dev/null /dev/kvm")
    assert code == 38, text
    assert "/dev/kvm is not KVM" in text


def test_too_few_descriptors(tmp_path):
    """At whichever step they run out: a message, a code that says so, nothing left locked."""
    command = Command(tmp_path)
    for limit in range(6, 32, 2):
        code, text = command.run("start", under=after(f"ulimit -n {limit}"))
        assert code in (2, 38), (limit, text)
        assert "Too many open files" in text, (limit, text)
        assert "Traceback" not in text, (limit, text)
    assert command.run("start")[0] == 0


def test_the_guest_outlives_requests_that_find_no_descriptor(tmp_path):
    """All that are left are taken away; a client is told so, or turned away, and may come again."""
    command = Command(tmp_path, HALT)
    process = command.start()
    limits = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
    used = len(os.listdir(f"/proc/{process.pid}/fd"))
    for free in (0, 1, 2):
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (used + free, limits[1]))
        for _ in range(3):
            command.run("status")
        assert process.poll() is None
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, limits)
    code, text = command.run("status")
    assert (code, "vm: running" in text) == (0, True), text
    assert command.run("stop", "--now")[0] == process.wait(10) == 37


def test_a_runtime_folder_that_cannot_be_used(tmp_path):
    command = Command(tmp_path)
    command.env["XDG_RUNTIME_DIR"] = "/proc/nowhere"
    code, text = command.run("start")
    assert code == 38
    assert "XDG_RUNTIME_DIR" in text


def test_a_panic_is_told(tmp_path):
    """With a crash kernel loaded the guest goes on; without one it ends with a code of its own."""
    command = Command(tmp_path, PANIC)
    code, text = command.run("start")
    assert code == 35, text
    assert "its crash kernel takes over" in text
    assert "up\n" in text
    assert "error run.lifecycle: the guest cannot go on: the guest's kernel panicked" in text
    facts = json.loads(command.run("status", "--json")[1])
    assert facts["state"] == "failed"
    assert facts["last_exit"]["code"] == 35


def test_the_terminal_comes_back(tmp_path):
    command = Command(tmp_path, HALT)
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    process = subprocess.Popen([COMMAND, "start"], env=command.env, stdin=slave, stdout=slave)
    text = b""
    while b"up" not in text:
        text += os.read(master, 4096)
    assert termios.tcgetattr(slave)[3] != before[3]
    os.write(master, b"\x03")  # Ctrl-C belongs to the guest
    time.sleep(0.3)
    assert process.poll() is None
    os.write(master, b"\x01x\x01x")  # Ctrl-A x, twice
    assert process.wait(20) == 37
    assert termios.tcgetattr(slave) == before
    os.close(master)
    os.close(slave)


def test_closed_standard_streams_are_not_given_to_images(tmp_path):
    """Nothing that is opened later takes the place of stdout, and so what is printed."""
    command = Command(tmp_path, HALT)
    process = subprocess.Popen(["sh", "-c", f"exec {COMMAND} start <&- >&- 2>&-"], env=command.env)
    while command.run("status")[0] != 0:
        assert process.poll() is None
        time.sleep(0.05)
    for fd in (0, 1, 2):
        assert os.readlink(f"/proc/{process.pid}/fd/{fd}") == "/dev/null"
    command.run("stop", "--now")
    assert process.wait(20) == 37
    assert (tmp_path / "system.img").read_bytes() == bytes(1 << 20)


def test_output_on_a_full_disk_and_into_a_pipe_that_closes():
    for verb in ("--version", "--help"):
        with open("/dev/full", "wb") as full:
            done = subprocess.run(
                [COMMAND, verb], env={}, stdout=full, stderr=subprocess.PIPE, check=False
            )
        assert done.returncode == 1
        assert b"stdout: the output cannot be written: No space left on device\n" in done.stderr
        assert done.stderr.count(b"\n") == 1
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(
            [COMMAND, verb], env={}, stdout=writer, stderr=subprocess.PIPE, check=False
        )
        os.close(writer)
        assert (done.returncode, done.stderr) == (1, b"")


def test_ps_shows_one_command(tmp_path):
    command = Command(tmp_path, HALT)
    process = command.start()
    arguments = Path(f"/proc/{process.pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
    assert arguments == [b"vllmd-hypervisor", b"start"]
    assert Path(f"/proc/{process.pid}/comm").read_text().strip() == "vllmd-hypervisor"[:15]
    command.run("stop", "--now")
    finish(process)


def test_the_environment_is_shown_with_its_sources(tmp_path):
    command = Command(tmp_path, CPU_COUNT=2)
    code, text = command.run("start", "--dry-run", "--json")
    facts = json.loads(text)
    assert code == 0
    assert facts["problems"] == []
    rows = {row["variable"]: row for row in facts["settings"]}
    assert rows[PREFIX + "CPU_COUNT"] == {
        "variable": PREFIX + "CPU_COUNT", "value": "2", "source": "environment",
    }  # fmt: skip
    assert rows[PREFIX + "STOP_TIMEOUT_SECONDS"]["source"] == "default"
    code, text = command.set(CPU_COUNT="0").run("env")
    assert code == 2
    assert "CPU_COUNT=0" in text


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["start", "--help"]])
def test_help(tmp_path, arguments):
    code, text = Command(tmp_path).run(*arguments)
    assert code == 0
    assert "vllmd-hypervisor" in text


def test_unknown_verb(tmp_path):
    assert Command(tmp_path).run("launch")[0] == 2


def test_which_instance(tmp_path):
    command = Command(tmp_path)
    code, text = command.run("stop", "../x")
    assert code == 2, text
    command.env = {k: v for k, v in command.env.items() if not k.startswith(PREFIX)}
    code, text = command.run("status")
    assert code == 2
    assert "which instance" in text
    assert command.run("status", "unknown")[0] == 3


ECHO = bytes(
    Program()
    .out_string(0x3F8, b"up\n")
    # wait for LSR bit 0; read the byte; send it back; again
    .raw("66bafd03 ec a801 74fb 66baf803 ec ee ebef".replace(" ", ""))
    .code
)


@pytest.mark.parametrize("kind", ["socket", "pty"])
def test_a_serial_port_on_a_socket_or_a_pty(tmp_path, kind):
    command = Command(tmp_path, ECHO, LOG_FILEPATH=tmp_path / "log")
    command.set(SERIAL=f"socket={tmp_path / 'serial'}" if kind == "socket" else "pty")
    process = subprocess.Popen([COMMAND, "start"], env=command.env, stdin=subprocess.DEVNULL)
    deadline = time.monotonic() + 10
    while command.run("status", "--json")[0] != 0 and time.monotonic() < deadline:
        time.sleep(0.05)
    facts = json.loads(command.run("status", "--json")[1])
    path = facts["consoles"][1]["path"]
    if kind == "socket":
        link = socket.socket(socket.AF_UNIX)
        link.connect(path)
        fd = link.detach()
    else:
        fd = os.open(path, os.O_RDWR | os.O_NOCTTY)
    os.write(fd, b"ping\n")
    text = b""
    while b"ping" not in text:
        text += os.read(fd, 100)
    os.close(fd)
    command.run("stop", "--now")
    assert process.wait(20) == 37
    if kind == "socket":
        assert text.startswith(b"up\n")  # what was said before anybody listened
        assert not os.path.exists(path)
