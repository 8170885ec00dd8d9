"""The real hypervisor-fw on this machine's KVM: disks that boot, and disks that are damaged."""

from __future__ import annotations

import shutil
import struct
import subprocess
import time

import pytest

from tests.lab.guests.firmware import REMEDY, find_hypervisor_fw
from tests.lab.guests.gpt import ESP_START, make_gpt
from tests.support.command import COMMAND, Command
from tests.support.speed import patience
from tests.support.tiny_bzimage import build_bzimage

SECONDS = 60
CMDLINE = "from.the.environment"
ENTRY = b"title tiny\nlinux /kernel\noptions from.the.entry\n"
FILES = {
    "kernel": build_bzimage(),
    "loader/loader.conf": b"default tiny\n",
    "loader/entries/tiny.conf": ENTRY,
}
SECTOR = 512


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    """A whole disk with a kernel of a few bytes; copied by each test."""
    for tool in ("sfdisk", "mkfs.vfat", "mcopy"):
        if shutil.which(tool, path="/usr/sbin:/sbin:/usr/bin:/bin") is None:
            pytest.skip(f"needs {tool} (apt-get install fdisk dosfstools mtools)")
    path = tmp_path_factory.mktemp("disk") / "disk.img"
    make_gpt(path, FILES)
    return path


@pytest.fixture
def command(tmp_path, disk):
    firmware = find_hypervisor_fw()
    if firmware is None:
        pytest.skip(f"no hypervisor-fw: {REMEDY}")
    made = Command(
        tmp_path, KERNEL_FILEPATH=firmware, CMDLINE=CMDLINE, MEMORY_CONFIG="size=64M",
        STOP_TIMEOUT_SECONDS=0,
    )  # fmt: skip
    subprocess.run(["cp", "--sparse=always", disk, tmp_path / "system.img"], check=True)
    return made


def test_a_disk_boots_itself(command):
    code, text = command.run("start", seconds=SECONDS)
    assert code == 0, text
    assert "Found EFI partition" in text
    last = text.partition("Jumping to kernel")[2]
    assert "from.the.entry" in last, text
    assert CMDLINE in last


def says(command: Command, words: str) -> str:
    """What the firmware prints until ``words``; then the guest is ended."""
    process = subprocess.Popen(
        [COMMAND, "start"], env=command.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert process.stdout is not None
    text = b""
    deadline = time.monotonic() + patience(SECONDS)
    while words.encode() not in text and time.monotonic() < deadline:
        data = process.stdout.read1(4096)
        if not data:
            break
        text += data
    process.terminate()
    text += process.communicate(timeout=patience(30))[0]
    assert process.returncode == 37, text.decode()
    return text.decode(errors="replace")


def damage(command: Command, offset: int, data: bytes) -> None:
    with open(command.folder / "system.img", "r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.mark.parametrize(
    ("offset", "data", "words"),
    [
        (SECTOR, bytes(SECTOR), "Unable to boot"),
        (SECTOR + 40, struct.pack("<Q", 1), "Unable to boot"),  # first usable sector
        (ESP_START, bytes(64 << 10), "PANIC"),
    ],
    ids=["no-gpt", "bad-gpt", "no-fat"],
)
def test_a_damaged_disk_is_the_firmware_s_affair(command, offset, data, words):
    damage(command, offset, data)
    text = says(command, words)
    assert words in text, text


def test_a_gpt_with_a_bad_checksum_boots_or_is_refused_by_the_firmware(command):
    damage(command, SECTOR + 16, b"\xff\xff\xff\xff")
    code, text = command.run("start", seconds=SECONDS)
    assert code == 0, text
    assert "from.the.entry" in text


def test_a_disk_with_an_odd_tail_boots(command):
    with open(command.folder / "system.img", "ab") as file:
        file.write(b"tail")
    code, text = command.run("start", seconds=SECONDS)
    assert code == 0, text
    assert "the last 4 bytes are not shown to the guest" in text


def test_an_empty_disk_is_refused(command):
    (command.folder / "system.img").write_bytes(b"")
    code, text = command.run("start")
    assert code == 38, text
    assert "less than one sector" in text


@pytest.mark.parametrize("size", [40, 200, 100_000])
def test_a_firmware_cut_short_is_refused(command, size):
    path = command.folder / "firmware"
    path.write_bytes(open(command.env["VLLMD_HYPERVISOR_KERNEL_FILEPATH"], "rb").read()[:size])
    code, text = command.set(KERNEL_FILEPATH=path).run("start")
    assert code == 2, text
    assert str(path) in text
    assert "Traceback" not in text
