"""`dump`: a running guest as an ELF core, which is whole or not there."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from io import BytesIO
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

import vmm
from tests.support.command import COMMAND, Command
from tests.support.counting_instance import (
    COUNTER,
    MAGIC,
    MAGIC_AT,
    count,
    counting,
    goes_on,
    running,
)  # fmt: skip
from tests.support.speed import patience

SHARED = "size=16M,shared=on"
# What cannot be dumped in a moment.
LARGE = "size=512M"
NOBODY = 65534
# Another user, who may open /dev/kvm wherever he is.
AS_NOBODY = (
    "setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups",
    "--inh-caps=+dac_override", "--ambient-caps=+dac_override",
)  # fmt: skip


def core(path: Path) -> tuple[ELFFile, dict[int, int]]:
    """The file, and the offset of each segment of RAM by its gpa."""
    elf = ELFFile(BytesIO(path.read_bytes()))
    loads = [part for part in elf.iter_segments() if part["p_type"] == "PT_LOAD"]
    return elf, {part["p_paddr"]: part["p_offset"] for part in loads}


@pytest.mark.parametrize("memory", [SHARED, "size=16M"], ids=["shared", "private"])
@pytest.mark.parametrize("flags", [(), ("--live",)], ids=["still", "live"])
def test_the_file_is_a_core_of_the_guest(tmp_path, memory, flags):
    with running(tmp_path, MEMORY_CONFIG=memory) as (command, _):
        path = tmp_path / "core"
        code, text = command.run("dump", "vm", str(path), *flags)
        assert code == 0, text
        assert "16 MiB" in text
        assert ("stood still for" in text) != bool(flags)
        elf, loads = core(path)
        assert loads.keys() == {0}
        data = path.read_bytes()
        at = loads[0] + MAGIC_AT
        assert data[at : at + 4] == MAGIC.to_bytes(4, "little")
        (notes,) = [part for part in elf.iter_segments() if part["p_type"] == "PT_NOTE"]
        assert next(notes.iter_notes())["n_type"] == "NT_PRSTATUS"
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.stat().st_blocks * 512 < 8 << 20
        with vmm.attach("vm", environment=command.env) as attached:
            seen = int.from_bytes(data[loads[0] + COUNTER :][:4], "little")
            assert seen <= count(attached)
            assert goes_on(attached)


def test_registers_and_ram_are_of_one_moment(tmp_path):
    with running(tmp_path) as (command, _):
        path = tmp_path / "core"
        assert command.run("dump", "vm", str(path))[0] == 0
        elf, loads = core(path)
        (notes,) = [part for part in elf.iter_segments() if part["p_type"] == "PT_NOTE"]
        # elf_prstatus: the registers begin at 112, rax is the eleventh.
        rax = int.from_bytes(next(notes.iter_notes())["n_descdata"][112 + 80 :][:8], "little")
        seen = int.from_bytes(path.read_bytes()[loads[0] + COUNTER :][:4], "little")
        assert rax - seen in (0, 1)


def test_a_guest_held_by_a_script_stays_held(tmp_path):
    with running(tmp_path) as (command, _), vmm.attach("vm", environment=command.env) as attached:
        with attached.paused():
            before = count(attached)
            size = attached.dump(tmp_path / "core")
            assert size == (tmp_path / "core").stat().st_size
            assert attached.is_paused
            assert count(attached) == before
        assert goes_on(attached)


def test_the_only_instance_needs_no_name(tmp_path):
    with running(tmp_path) as (command, _):
        assert command.run("dump", str(tmp_path / "core"))[0] == 0


def test_what_cannot_be_dumped_has_its_code(tmp_path):
    command = Command(tmp_path)
    code, text = command.run("dump", "other", str(tmp_path / "core"))
    assert (code, "no instance 'other' is known" in text) == (4, True)
    command.run("start")
    code, text = command.run("dump", "vm", str(tmp_path / "core"))
    assert (code, "does not run" in text) == (3, True)
    assert not (tmp_path / "core").exists()


def test_a_device_is_not_replaced_and_a_folder_is_missing(tmp_path):
    with running(tmp_path) as (command, _):
        for path, told in (
            ("/dev/full", "is no regular file"),
            (str(tmp_path), "is no regular file"),
            (str(tmp_path / "none/core"), "cannot write the core file"),
        ):
            code, text = command.run("dump", "vm", path)
            assert (code, told in text) == (38, True), text
        with vmm.attach("vm", environment=command.env) as attached:
            assert goes_on(attached)


def test_a_full_disk_leaves_nothing_and_lets_the_guest_go(tmp_path):
    limited = ("bash", "-c", 'ulimit -f 64; exec "$@"', "-")
    with running(tmp_path) as (command, _):
        (tmp_path / "core").write_bytes(b"older")
        code, text = command.run("dump", "vm", str(tmp_path / "core"), under=limited)
        assert (code, "cannot write the core file" in text) == (38, True), text
        assert "free space" in text
        assert (tmp_path / "core").read_bytes() == b"older"
        assert not list(tmp_path.glob("core.*"))
        with vmm.attach("vm", environment=command.env) as attached:
            assert goes_on(attached)


def dump_begun(command: Command, folder: Path) -> subprocess.Popen[bytes]:
    """The verb at work: its file is there, under the name of the time before it is whole."""
    dumping = subprocess.Popen(
        [COMMAND, "dump", "vm", str(folder / "core")], env=command.env,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    deadline = time.monotonic() + patience(60)
    while not list(folder.glob("core.*.new")):
        assert dumping.poll() is None, dumping.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return dumping


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_ended_in_the_middle_it_lets_the_guest_go(tmp_path, number):
    with running(tmp_path, MEMORY_CONFIG=LARGE) as (command, _):
        dumping = dump_begun(command, tmp_path)
        # On a busy machine it would be through before this one is attached.
        dumping.send_signal(signal.SIGSTOP)
        with vmm.attach("vm", environment=command.env) as attached:
            dumping.send_signal(number)
            dumping.send_signal(signal.SIGCONT)
            dumping.communicate(timeout=patience(20))
            assert dumping.returncode in (130, -number)
            assert goes_on(attached)
            if number != signal.SIGKILL:
                assert not list(tmp_path.glob("core*"))


def test_a_guest_that_is_stopped_meanwhile_leaves_no_dump(tmp_path):
    with running(tmp_path, MEMORY_CONFIG=LARGE) as (command, process):
        dumping = dump_begun(command, tmp_path)
        process.send_signal(signal.SIGTERM)
        text = dumping.communicate(timeout=patience(60))[0].decode()
        assert dumping.returncode == 38, text
        assert "ended" in text or "closed the connection" in text
        assert not list(tmp_path.glob("core*"))
        assert process.wait(timeout=patience(20)) == 37


@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("setpriv"), reason="needs root, to be two users"
)
@pytest.mark.parametrize("memory", [SHARED, "size=16M"], ids=["shared", "private"])
def test_root_dumps_another_users_instance_and_a_script_is_told_whose_it_is(memory):
    if COMMAND.startswith(sys.prefix) and not all(
        f.stat().st_mode & 1 for f in Path(os.__file__).parents
    ):
        # A confined instance has no capability to read this Python's modules with.
        pytest.skip("this Python is in a folder that others cannot enter; the executable runs it")
    with tempfile.TemporaryDirectory(prefix="vm") as name:
        folder = Path(name)
        command = Command(folder, counting(), MEMORY_CONFIG=memory, ATTACH="on")
        for path in (folder, *folder.iterdir()):
            os.chown(path, NOBODY, NOBODY)
        process = subprocess.Popen(
            [*AS_NOBODY, COMMAND, "start"], env=command.env, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            assert process.stdout is not None
            while (line := process.stdout.readline()) != b"up\n":
                assert line, "it did not start"
            code, text = command.run("dump", "vm", str(folder / "core"))
            assert code == 0, text
            with pytest.raises(vmm.HostError, match=f"is run by user {NOBODY}, not by 0"):
                vmm.attach("vm", environment=command.env)
        finally:
            process.kill()
            process.communicate()
