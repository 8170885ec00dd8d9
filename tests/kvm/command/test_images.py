"""Images that `start` refuses and `check` tells of in the same words, and what a guest sees."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.support.block_device import loop_device, needs_loop
from tests.support.command import HALT, Command, finish

QCOW2 = b"QFI\xfb\0\0\0\x03".ljust(1 << 20, b"\0")


def refused(command: Command, code: int, *words: str) -> None:
    """By start, start --dry-run and check, with the same code and words."""
    before = {path: path.read_bytes() for path in command.folder.glob("*.img")}
    for verb in (["check"], ["start", "--dry-run"], ["start"]):
        found, text = command.run(*verb)
        assert found == code, f"{verb}: {text}"
        for word in words:
            assert word in text
        assert "Traceback" not in text
    assert {path: path.read_bytes() for path in command.folder.glob("*.img")} == before


@pytest.mark.parametrize("variable", ["SYSTEM_IMAGE_FILEPATH", "CONFIG_IMAGE_FILEPATH"])
def test_a_qcow2_image(tmp_path, variable):
    path = tmp_path / "disk.qcow2"
    path.write_bytes(QCOW2)
    command = Command(tmp_path, **{variable: path})
    convert = f"qemu-img convert -f qcow2 -O raw {path} {tmp_path}/disk.raw"
    refused(command, 2, variable, convert, f"{path},format=raw")
    command.set(**{variable: f"{path},format=raw"})
    assert command.run("start")[0] == 0
    assert command.run("check")[0] == 0


def test_an_image_that_looks_foreign_is_raw_by_word(tmp_path):
    command = Command(tmp_path)
    path = tmp_path / "system.img"
    path.write_bytes(QCOW2)
    code, text = command.set(SYSTEM_IMAGE_FILEPATH=f"{path},format=qcow2").run("start")
    assert code == 2
    assert "raw is the only one" in text


@pytest.mark.parametrize("image", ["system.img", "config.img"])
@pytest.mark.parametrize("way", ["itself", "symlink", "hard link", "relative"])
@pytest.mark.parametrize("setting", ["LOG_FILEPATH={}", "CONSOLE=file={}", "SERIAL=file={}"])
def test_an_image_is_nobodys_log(tmp_path, setting, way, image):
    command = Command(tmp_path)
    name = tmp_path / image
    if way == "symlink":
        name = tmp_path / "vm.log"
        name.symlink_to(image)
    elif way == "hard link":
        name = tmp_path / "vm.log"
        os.link(tmp_path / image, name)
    elif way == "relative":
        name = Path(os.path.relpath(name))
    variable, _, value = setting.format(name).partition("=")
    command.set(**{variable: value})
    refused(command, 2, variable, "the same file", "give each file one role")


@pytest.mark.parametrize(
    "settings",
    [
        {"LOG_FILEPATH": "{}/guest.elf"},
        {"CONSOLE": "file={}/new", "SERIAL": "file={}/new"},
        {"CONSOLE": "file={}/new", "LOG_FILEPATH": "{}/new"},
        {"INITRAMFS_FILEPATH": "{}/guest.elf"},
        {"KERNEL_FILEPATH": "{}/system.img"},
        {"SYSTEM_IMAGE_FILEPATH": "{0}/system.img,{0}/system.img"},
    ],
    ids=str,
)
def test_other_files_with_two_roles(tmp_path, settings):
    command = Command(tmp_path)
    command.set(**{name: value.format(tmp_path) for name, value in settings.items()})
    refused(command, 2, "the same", "give each file one role")


def test_a_log_that_the_shell_sends_into_an_image(tmp_path):
    command = Command(tmp_path)
    image = tmp_path / "system.img"
    before = image.read_bytes()
    shell = ("sh", "-c", f'"$@" >>{image}', "sh")
    code, text = command.run("start", under=shell)
    assert code == 2
    assert "the same file" in text
    assert image.read_bytes() == before


@pytest.mark.parametrize(
    ("setting", "image"),
    [
        ("LOG_FILEPATH={}", "system.img"),
        ("LOG_FILEPATH={}", "config.img"),
        ("CONSOLE=file={}", "system.img"),
        ("SERIAL=file={}", "config.img"),
        (">>{}", "system.img"),
    ],
)
def test_another_vm_s_image_is_nobodys_log(tmp_path, setting, image):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    first = Command(tmp_path / "a", HALT, NAME="a")
    process = first.start()
    command = Command(tmp_path / "b", NAME="b")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "a" / image)
    told = [str(link), f"process {process.pid} has it locked", "name another file"]
    if setting.startswith(">>"):
        under = ("sh", "-c", f'"$@" {setting.format(link)} 2>{tmp_path}/told', "sh")
        code = command.run("start", under=under)[0]
        text = (tmp_path / "told").read_text()
        told[0] = "/dev/stdout"
        assert (code, [word for word in told if word not in text]) == (39, []), text
    else:
        variable, _, value = setting.format(link).partition("=")
        command.set(**{variable: value})
        refused(command, 39, variable, *told)
    assert (tmp_path / "a" / image).read_bytes() == bytes(1 << 20)
    first.run("stop", "--now")
    finish(process)


@needs_loop
def test_a_loop_device_and_its_file(tmp_path):
    command = Command(tmp_path)
    with loop_device(tmp_path / "system.img") as device:
        command.set(CONFIG_IMAGE_FILEPATH=device)
        refused(command, 2, "the same image", device)
        command.set(CONFIG_IMAGE_FILEPATH=tmp_path / "config.img", LOG_FILEPATH=device)
        refused(command, 2, "a block device cannot take a log or console")
        command.set(SYSTEM_IMAGE_FILEPATH=device, LOG_FILEPATH=tmp_path / "system.img")
        refused(command, 2, "the same file", device)
        link = tmp_path / "by-id"
        link.symlink_to(device)
        command.set(LOG_FILEPATH="/dev/stdout", CONFIG_IMAGE_FILEPATH=link)
        refused(command, 2, "the same image", device)
        with loop_device(tmp_path / "system.img") as other:
            command.set(CONFIG_IMAGE_FILEPATH=other)
            refused(command, 2, "the same image", other)


@needs_loop
def test_a_read_only_device_as_system_disk(tmp_path):
    command = Command(tmp_path)
    (tmp_path / "disk").write_bytes(bytes(1 << 20))
    with loop_device(tmp_path / "disk", "--read-only") as device:
        command.set(SYSTEM_IMAGE_FILEPATH=device)
        for verb in ("check", "start"):
            code, text = command.run(verb)
            assert code == 2, text
            assert f"cannot open the disk image {device}" in text


def test_serials_are_stable_and_settable(tmp_path):
    seen = []
    for _ in range(2):
        command = Command(tmp_path, HALT)
        command.set(CONFIG_IMAGE_FILEPATH=f"{tmp_path}/config.img,serial=seed-1")
        process = command.start()
        facts = json.loads(command.run("status", "--json")[1])
        seen.append([one["serial"] for one in facts["devices"] if "serial" in one])
        process.kill()
        finish(process)
    assert seen[0] == seen[1]
    assert seen[0][1] == "seed-1"
    assert seen[0][0] != seen[0][1]
