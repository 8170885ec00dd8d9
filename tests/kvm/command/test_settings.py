"""Settings that are wrong or missing, and what the words of the command line say."""

from __future__ import annotations

import json
from base64 import b64encode

import pytest

from tests.support.command import HELLO, PREFIX, Command
from tests.support.elf_builder import build_elf
from tests.support.guest_asm import Program


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
    assert command.run("status", "unknown")[0] == 4


def test_credentials_reach_the_guest_and_no_log(tmp_path):
    # cld; mov esi, SMBIOS's text; mov ecx, 4096; mov edx, COM1; rep outsb
    show = Program().raw("fc be00000f00 b900100000 baf8030000 f36e")
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets/guest.answer").write_bytes(b"hunter2")
    command = Command(
        tmp_path, show.power_off(), SERIAL=f"file={tmp_path}/serial", DEBUG=1,
        LOG_FILEPATH=tmp_path / "log", CMDLINE="ro systemd.set_credential=a:hunter3 API_TOKEN=x",
    )  # fmt: skip
    command.env["CREDENTIALS_DIRECTORY"] = str(tmp_path / "secrets")
    code, text = command.run("start")
    assert code == 0, text
    said = b"io.systemd.credential.binary:answer=" + b64encode(b"hunter2") + b"\0"
    assert said in (tmp_path / "serial").read_bytes()
    log = text + (tmp_path / "log").read_text()
    assert "CMDLINE=ro systemd.set_credential=(not shown) API_TOKEN=(not shown)" in log
    for secret in ("hunter", b64encode(b"hunter2").decode()):
        assert secret not in log
    (tmp_path / "secrets/guest.a=b").write_bytes(b"")
    code, text = command.run("start")
    assert (code, "CREDENTIALS_DIRECTORY: 'guest.a=b'" in text) == (2, True), text
