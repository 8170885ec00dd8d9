"""Text from outside on its way through the command: paths that are no UTF-8, full disks, guests."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.support.command import COMMAND, HALT, PREFIX, Command, finish
from tests.support.elf_builder import build_elf

LOCALES = (
    {}, {"LC_ALL": "C"}, {"LC_ALL": "C.UTF-8"}, {"LC_ALL": "en_US.UTF-8"},
    {"LC_ALL": "en_US.ISO-8859-1"}, {"PYTHONIOENCODING": "utf-8:strict"},
    {"PYTHONIOENCODING": "ascii:strict"},
)  # fmt: skip


def byte_named(folder: Path, **settings: object) -> Command:
    """An instance whose image has a name that is no UTF-8."""
    command = Command(folder, **settings)
    image = os.fsencode(folder) + b"/disk-\xff\xe4.img"
    with open(image, "wb") as file:
        file.write(bytes(1 << 20))
    return command.set(SYSTEM_IMAGE_FILEPATH=os.fsdecode(image), LOG_FILEPATH=folder / "log")


@pytest.mark.parametrize("locale", LOCALES, ids=str)
def test_an_image_whose_name_is_no_utf8(tmp_path, locale):
    command = byte_named(tmp_path)
    command.env.update(locale)
    for words in (["check"], ["env"], ["start", "--dry-run"], ["start"], ["status"], ["stop"]):
        code, text = command.run(*words)
        assert "Traceback" not in text, (words, text)
        assert code == (3 if words == ["status"] else 0), (words, text)
    for words in (["check", "--json"], ["env", "--json"], ["status", "--json"]):
        text = command.run(*words)[1]
        assert "disk-" in text
        json.loads(text)
    command.set(SYSTEM_IMAGE_FILEPATH=command.env[PREFIX + "SYSTEM_IMAGE_FILEPATH"] + "\udcfe")
    for words in (["check"], ["start"]):
        code, text = command.run(*words)
        assert "Traceback" not in text, (words, text)
        assert code == 2, (words, text)


def test_its_bytes_are_shown(tmp_path):
    command = byte_named(tmp_path)
    command.env["PYTHONIOENCODING"] = "utf-8:strict"
    for words in (["check"], ["env"]):
        assert "/disk-\\xff\\xe4.img" in command.run(*words)[1]
    command.set(SYSTEM_IMAGE_FILEPATH=command.env[PREFIX + "SYSTEM_IMAGE_FILEPATH"] + "\udcfe")
    command.run("start")
    assert "/disk-\\xff\\xe4.img\\xfe" in (tmp_path / "log").read_text()


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("verb", ["env", "check", "--help", "--version", "list"])
def test_a_full_disk_under_stdout(tmp_path, verb, unbuffered):
    command = Command(tmp_path)
    command.env["PYTHONUNBUFFERED"] = unbuffered
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [COMMAND, verb], env=command.env, stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr
    assert b"stdout: the output cannot be written: No space left on device" in done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_under_both_streams(tmp_path, unbuffered):
    command = Command(tmp_path, CPU_COUNT="0")
    command.env["PYTHONUNBUFFERED"] = unbuffered
    with open("/dev/full", "wb") as full:
        for words, code in ((["start"], 2), (["env"], 1), (["launch"], 2)):
            done = subprocess.run(
                [COMMAND, *words], env=command.env, stdout=full, stderr=full, check=False
            )
            assert done.returncode == code, words
        done = subprocess.run(
            [COMMAND, "start", "--timing"], env=command.set(CPU_COUNT="1").env, stdout=full,
            stderr=full, stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        assert done.returncode == 0


def test_settings_from_a_file(tmp_path):
    """All verbs; the environment wins; what is wrong is told with file and line."""
    command = Command(tmp_path, HALT)
    file = tmp_path / "vm.env"
    lines = [f"{name}={value}" for name, value in command.env.items() if name.startswith(PREFIX)]
    file.write_text("# our VM\n" + "\n".join(lines) + "\n")
    command.env = {k: v for k, v in command.env.items() if not k.startswith(PREFIX)}
    option = ("--env-file", str(file))
    code, text = command.run("env", *option)
    assert code == 0, text
    assert f"{file}:2" in text
    assert command.run("check", *option)[0] == 0
    process = subprocess.Popen(
        [COMMAND, *option, "start"], env=command.env, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert process.stdout is not None
    while b"up" not in process.stdout.readline():
        assert process.poll() is None
    assert command.run("status", *option)[0] == 0
    command.run("stop", "--now", *option)
    finish(process)
    code, text = command.set(CPU_COUNT="3").run("env", *option, "--json")
    rows = {row["variable"]: row for row in json.loads(text)["settings"]}
    assert rows[PREFIX + "CPU_COUNT"]["value"] == "3"
    assert rows[PREFIX + "CPU_COUNT"]["source"] == "environment"
    file.write_text(file.read_text() + "nonsense\n")
    for verb in ("start", "stop", "status", "check", "env"):
        code, text = command.run(verb, *option)
        assert code == 2
        assert f"{file}:{len(lines) + 2}: 'nonsense' is not NAME=VALUE" in text


@pytest.mark.parametrize(
    ("settings", "variable"),
    [
        ({"KERNEL_FILEPATH": "/etc/passwd"}, "KERNEL_FILEPATH"),
        ({"INITRAMFS_FILEPATH": "/dev/null"}, "INITRAMFS_FILEPATH"),
        ({"CMDLINE": "x" * 3000}, "CMDLINE"),
        ({"CONSOLE": "file=/proc/x"}, "CONSOLE"),
        ({"SERIAL": "socket=/proc/x"}, "SERIAL"),
        ({"CPU_COUNT": "4096"}, "CPU_COUNT"),
        ({"MEMORY_CONFIG": "size=8T"}, "MEMORY_CONFIG"),
        ({"LOG_FILEPATH": "/proc/x/y"}, "LOG_FILEPATH"),
        ({"SYSTEM_IMAGE_FILEPATH": "/nonexistent"}, "SYSTEM_IMAGE_FILEPATH"),
        ({"CONFIG_IMAGE_FILEPATH": "/tmp"}, "CONFIG_IMAGE_FILEPATH"),
        ({"DEVICE_FILEPATH_LIST": "fe:1f.7"}, "DEVICE_FILEPATH_LIST"),
    ],
)
def test_an_error_begins_with_its_variable(tmp_path, settings, variable):
    text = Command(tmp_path, **settings).run("start")[1]
    assert f"error command.cli: {PREFIX}{variable}" in text or f"error: {PREFIX}{variable}" in text


@pytest.mark.parametrize("name", ["vm\r", " vm", '"vm"', "vm\n"])
def test_a_name_on_the_command_line_is_freed_as_a_setting_is(tmp_path, name):
    command = Command(tmp_path)
    assert command.run("start")[0] == 0
    code, text = command.run("status", name)
    assert code == 3
    assert text.startswith("vm: stopped, started ")


def test_status_of_a_running_guest_whose_image_is_no_utf8(tmp_path):
    command = byte_named(tmp_path)
    (tmp_path / "guest.elf").write_bytes(build_elf(HALT))
    command.set(LOG_FILEPATH="/dev/stdout", DEBUG="1")
    command.env["PYTHONIOENCODING"] = "ascii:strict"
    process = command.start()
    code, text = command.run("status")
    assert code == 0, text
    assert "/disk-\\xff\\xe4.img" in text
    assert json.loads(command.run("status", "--json")[1])["state"] == "running"
    command.run("stop", "--now")
    assert "Traceback" not in finish(process)[1]
