"""`check` and `start` agree about every broken world: the same code, and both say what is wrong."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kvm.command.test_limits import after
from tests.support.command import HALT, HELLO, Command, finish
from tests.support.elf_builder import build_elf
from tests.support.tiny_bzimage import build_bzimage
from vmm._native.host.posix import ofd_lock


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """Shorter than pytest's: sockets have short paths."""
    with tempfile.TemporaryDirectory(prefix="vm") as path:
        yield Path(path)


ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make this world")
NOBODY = 65534
World = Callable[[Command], object]


def settings(**values: str) -> World:
    """{} stands for the folder."""
    return lambda command: command.set(
        **{name: value.format(command.folder) for name, value in values.items()}
    )


def runtime(path: str) -> World:
    def change(command: Command) -> None:
        command.env["XDG_RUNTIME_DIR"] = path.format(command.folder)

    return change


def file(name: str, content: bytes = b"", mode: int = 0o755, **values: str) -> World:
    def change(command: Command) -> None:
        path = command.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(mode)
        settings(**values)(command)

    return change


def folder(name: str, **values: str) -> World:
    def change(command: Command) -> None:
        path = command.folder / name
        path.unlink(missing_ok=True)
        path.mkdir(parents=True, mode=0o700)
        settings(**values)(command)

    return change


def fifo(name: str, **values: str) -> World:
    def change(command: Command) -> None:
        (command.folder / name).unlink(missing_ok=True)
        os.mkfifo(command.folder / name)
        settings(**values)(command)

    return change


def link(name: str, target: str, **values: str) -> World:
    def change(command: Command) -> None:
        os.symlink(target, command.folder / name)
        settings(**values)(command)

    return change


def owned(*names: str) -> World:
    """Folders of which the last one belongs to somebody else."""

    def change(command: Command) -> None:
        for name in names:
            (command.folder / name).mkdir(mode=0o700)
        os.chown(command.folder / names[-1], NOBODY, NOBODY)

    return change


def first_owned(command: Command) -> None:
    (command.folder / "vllmd-hypervisor/vm").mkdir(parents=True, mode=0o700)
    os.chown(command.folder / "vllmd-hypervisor", NOBODY, NOBODY)


def long_runtime(command: Command) -> None:
    path = command.folder / ("x" * 90)
    path.mkdir()
    command.env["XDG_RUNTIME_DIR"] = str(path)


def thirty_disks(command: Command) -> None:
    paths = [command.folder / f"disk{number}" for number in range(30)]
    for path in paths:
        path.write_bytes(bytes(512))
    command.set(SYSTEM_IMAGE_FILEPATH=",".join(map(str, paths)))


@contextlib.contextmanager
def listening(command: Command) -> Iterator[None]:
    """Somebody else's console socket, whose owner shall not notice that it was looked at."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(command.folder / "console"))
        listener.listen(1)
        listener.setblocking(False)
        command.set(CONSOLE=f"socket={command.folder}/console")
        yield


@contextlib.contextmanager
def image_in_use(command: Command) -> Iterator[None]:
    with open(command.folder / "system.img", "r+b") as image:
        ofd_lock(image.fileno(), True, 0, 0)
        yield


@contextlib.contextmanager
def running(command: Command) -> Iterator[None]:
    (command.folder / "guest.elf").write_bytes(build_elf(HALT))
    process = command.start()
    try:
        yield
    finally:
        process.kill()
        finish(process)


BZIMAGE = {
    "MEMORY_CONFIG": "size=64M",
    "KERNEL_FILEPATH": "{}/vmlinuz",
    "INITRAMFS_FILEPATH": "{}/initrd",
}
LOW = build_bzimage(changes={0x22C: struct.pack("<I", 0xFFFF)})


def low_initrd(command: Command) -> None:
    file("vmlinuz", LOW, **BZIMAGE)(command)
    file("initrd", bytes(4096))(command)


# name: (what is broken, exit code, a word that both say)
WORLDS: dict[str, tuple[World, int, str]] = {
    "no such setting": (settings(CPUS="2"), 2, "not a known setting"),
    "a bad value": (settings(CPU_COUNT="0"), 2, "CPU_COUNT=0"),
    "runtime in /proc": (runtime("/proc"), 38, "No such file or directory"),
    "runtime in /sys": (runtime("/sys"), 38, "Operation not permitted"),
    "runtime in /dev/pts": (runtime("/dev/pts"), 38, "instance folder"),
    "runtime missing": (runtime("{}/none"), 38, "No such file or directory"),
    "runtime is a file": (runtime("{}/guest.elf"), 38, "Not a directory"),
    "runtime relative": (runtime("run"), 2, "not an absolute path"),
    "runtime too long": (long_runtime, 2, "XDG_RUNTIME_DIR="),
    "a file in the way": (file("vllmd-hypervisor"), 38, "not a folder of this user's"),
    "the lock is a folder": (folder("vllmd-hypervisor/vm/lock"), 38, "Is a directory"),
    "the control socket is a folder": (
        folder("vllmd-hypervisor/vm/control"), 38, "Is a directory",
    ),
    "console file without folder": (settings(CONSOLE="file={}/none/log"), 38, "console file"),
    "console file is a folder": (settings(CONSOLE="file={}"), 38, "Is a directory"),
    "console file is a dangling link": (
        link("log", "/none/log", CONSOLE="file={}/log"), 38, "No such file",
    ),
    "serial file in /proc": (settings(SERIAL="file=/proc/log"), 38, "SERIAL"),
    "console socket is a file": (settings(CONSOLE="socket={}/guest.elf"), 2, "same file"),
    "console socket is a dangling link": (
        link("console", "none", CONSOLE="socket={}/console"), 38, "in use",
    ),
    "console socket without folder": (settings(CONSOLE="socket={}/none/x"), 38, "console socket"),
    "console socket in /proc": (settings(CONSOLE="socket=/proc/x"), 38, "console socket"),
    "console socket too long": (settings(CONSOLE="socket=/" + "x" * 120), 38, "are possible"),
    "one socket twice": (
        settings(CONSOLE="socket={}/s", SERIAL="socket={}/s"), 2, "same file",
    ),
    "console socket in use": (listening, 38, "in use"),
    "log in /proc": (settings(LOG_FILEPATH="/proc/none/log"), 38, "cannot log to"),
    "log is a folder": (settings(LOG_FILEPATH="{}"), 38, "Is a directory"),
    "log behind a file": (settings(LOG_FILEPATH="{}/guest.elf/log"), 38, "cannot log to"),
    "log is a folder to be": (settings(LOG_FILEPATH="{}/new/"), 38, "Is a directory"),
    "log with a long name": (settings(LOG_FILEPATH="{}/" + "x" * 300), 38, "name too long"),
    "no journald": (settings(LOG_FILEPATH="journald"), 38, "cannot log to journald"),
    "image missing": (settings(SYSTEM_IMAGE_FILEPATH="{}/none"), 2, "SYSTEM_IMAGE_FILEPATH"),
    "image empty": (file("system.img"), 2, "less than one sector"),
    "image is a folder": (folder("system.img"), 2, "neither a file nor a block device"),
    "image is a FIFO": (fifo("system.img"), 2, "neither a file nor a block device"),
    "image in use": (image_in_use, 39, "in use"),
    "thirty disks": (thirty_disks, 2, "room for 29"),
    "instance running": (running, 39, "is run by process"),
    "kernel missing": (settings(KERNEL_FILEPATH="{}/none"), 2, "KERNEL_FILEPATH"),
    "kernel is text": (settings(KERNEL_FILEPATH="/etc/passwd"), 2, "KERNEL_FILEPATH=/etc/passwd"),
    "kernel is a FIFO": (fifo("fifo", KERNEL_FILEPATH="{}/fifo"), 2, "not a regular file"),
    "kernel larger than RAM": (
        file("guest.elf", build_elf(HELLO, loads=((0x400000, 32 << 20),))), 2, "needs RAM at",
    ),
    "kernel with overlapping segments": (
        file("guest.elf", build_elf(HELLO, loads=((0x100000, 4096),))), 2, "overlap",
    ),
    "kernel with megabytes of notes": (
        file("guest.elf", build_elf(HELLO, notes_at_end=bytes(4 << 20))), 2, "PVH entry",
    ),
    "command line too long": (settings(CMDLINE="x" * 2048), 2, "takes 2047"),
    "initramfs missing": (settings(INITRAMFS_FILEPATH="{}/none"), 2, "INITRAMFS_FILEPATH"),
    "initramfs empty": (file("initrd", INITRAMFS_FILEPATH="{}/initrd"), 2, "empty"),
    "initramfs larger than RAM": (
        file("initrd", bytes(16 << 20), INITRAMFS_FILEPATH="{}/initrd"), 2, "do not fit",
    ),
    "initramfs above initrd_addr_max": (low_initrd, 2, "initrd_addr_max"),
    "too little memory": (settings(MEMORY_CONFIG="size=8T"), 38, "are available"),
    "no such node": (settings(MEMORY_CONFIG="size=16M,host_numa_node=900"), 38, "no such node"),
    "too many vCPUs": (settings(CPU_COUNT="4096"), 38, "KVM allows"),
    "no such device": (settings(DEVICE_FILEPATH_LIST="10000:e1:00.0"), 2, "10000:e1:00.0"),
    "no such device, in short": (settings(DEVICE_FILEPATH_LIST="fe:1f.7"), 2, "0000:fe:1f.7"),
}  # fmt: skip
ROOT_WORLDS: dict[str, tuple[World, int, str]] = {
    "a folder of somebody else's": (owned("vllmd-hypervisor"), 38, "not a folder of this"),
    "an instance of somebody else's": (
        owned("vllmd-hypervisor", "vllmd-hypervisor/vm"), 38, "not a folder of this",
    ),
    "ours in somebody else's": (first_owned, 38, "not a folder of this"),
}  # fmt: skip


def agree(command: Command, code: int, word: str, under: tuple[str, ...] = ()) -> None:
    told = {}
    for verb in (("check",), ("start", "--dry-run"), ("start",)):
        found, text = command.run(*verb, under=under)
        told[verb] = text
        assert "Traceback" not in text, text
        assert found == code, (verb, told)
        assert word in text, (verb, told)


@pytest.mark.parametrize("name", WORLDS)
def test_check_and_start_agree(tmp_path, name):
    world, code, word = WORLDS[name]
    command = Command(tmp_path)
    context = world(command)
    with context if hasattr(context, "__exit__") else contextlib.nullcontext():
        agree(command, code, word)


@ROOT_ONLY
@pytest.mark.parametrize("name", ROOT_WORLDS)
def test_check_and_start_agree_about_owners(tmp_path, name):
    world, code, word = ROOT_WORLDS[name]
    command = Command(tmp_path)
    world(command)
    agree(command, code, word)


@ROOT_ONLY
@pytest.mark.parametrize(
    ("options", "word"),
    [("-o ro", "Read-only file system"), ("-o nr_inodes=1", "No space left on device")],
)
def test_file_systems_that_take_nothing(tmp_path, options, word):
    command = Command(tmp_path)
    (tmp_path / "run").mkdir()
    command.env["XDG_RUNTIME_DIR"] = str(tmp_path / "run")
    mount = after(f"mount -t tmpfs {options} tmpfs {tmp_path}/run")
    agree(command, 38, word, ("unshare", "-m", *mount))


@ROOT_ONLY
def test_a_full_file_system(tmp_path):
    command = Command(tmp_path)
    (tmp_path / "run").mkdir()
    command.env["XDG_RUNTIME_DIR"] = str(tmp_path / "run")
    place = f"{tmp_path}/run"
    fill = f"mount -t tmpfs -o size=64k tmpfs {place} && head -c 64k /dev/zero >{place}/x"
    agree(command, 38, "No space left on device", ("unshare", "-m", *after(fill)))


@ROOT_ONLY
def test_a_kvm_that_is_none(tmp_path):
    under = ("unshare", "-m", *after("mount -B /dev/null /dev/kvm"))
    agree(Command(tmp_path), 38, "/dev/kvm is not KVM", under)


@pytest.mark.parametrize(
    ("limit", "word"), [("-n 20", "Too many open files"), ("-v 1500000", "guest RAM")]
)
def test_limits(tmp_path, limit, word):
    agree(Command(tmp_path, MEMORY_CONFIG="size=2G"), 38, word, after(f"ulimit {limit}"))


def test_looking_at_a_console_socket_does_not_disturb_its_owner(tmp_path):
    command = Command(tmp_path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "console"))
        listener.listen(1)
        listener.setblocking(False)
        code, text = command.set(CONSOLE=f"socket={tmp_path}/console").run("check")
        assert code == 38, text
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_where_no_kernel_runs_check_does_not_promise_one(tmp_path):
    """The verdict and the warning go together, on hosts of either kind."""
    code, text = Command(tmp_path).run("check")
    assert code == 0, text
    assert ("no usual kernel would run" in text) == ("guest kernels will not run" in text)
    assert ("start would go through" in text) != ("guest kernels will not run" in text)


def test_nothing_was_made(tmp_path: Path):
    """What looks for places leaves none behind."""
    command = Command(tmp_path, CONSOLE=f"socket={tmp_path}/s", LOG_FILEPATH=f"{tmp_path}/a/b/log")
    before = subprocess.run(["find", tmp_path], capture_output=True, check=True).stdout
    assert command.run("check")[0] == 0
    assert command.run("start", "--dry-run")[0] == 0
    assert subprocess.run(["find", tmp_path], capture_output=True, check=True).stdout == before
