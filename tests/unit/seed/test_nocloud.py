"""A NoCloud seed, read back by tools that others wrote."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from vmm.errors import ConfigError, HostError
from vmm.seed import fat
from vmm.seed.nocloud import FILE_BYTES_MAX, write_seed

USER = b"#cloud-config\nhostname: llama\n"
META = b"instance-id: one\n"
# Below a cluster, one, several, and none at all.
CONTENTS = [
    {"user-data": USER, "meta-data": META},
    {"user-data": USER, "meta-data": b"", "network-config": b"version: 2\n"},
    {"user-data": bytes(range(256)) * 2, "meta-data": b"x" * 513, "network-config": b"n" * 100_000},
    {"user-data": b"", "meta-data": b""},
    {"user-data": os.urandom(FILE_BYTES_MAX), "meta-data": b"m" * FILE_BYTES_MAX},
]


def tool(*words: object) -> bytes:
    """Output of a tool of mtools or dosfstools."""
    if shutil.which(str(words[0])) is None:
        assert os.environ.get("VLLMD_TEST_LAB") != "1", "apt-get install dosfstools mtools"
        pytest.skip(f"needs {words[0]} (apt-get install dosfstools mtools)")
    done = subprocess.run([str(word) for word in words], capture_output=True, check=False)
    assert done.returncode == 0, (words, done)
    return done.stdout


def sources(folder: Path, contents: dict[str, bytes]) -> list[str]:
    for name, content in contents.items():
        (folder / f"my-{name}").write_bytes(content)
    return [str(folder / f"my-{name}") for name in contents]


def listing(image: Path) -> list[str]:
    return sorted(tool("mdir", "-b", "-i", image, "::/").decode().split())


@pytest.mark.parametrize("contents", CONTENTS, ids=["two", "three", "clusters", "empty", "large"])
def test_others_read_what_was_written(tmp_path, contents):
    image = tmp_path / "seed.img"
    write_seed(sources(tmp_path, contents), str(image))
    tool("fsck.vfat", "-n", image)
    assert b"label is cidata" in tool("mlabel", "-s", "-i", image, "::")
    assert listing(image) == sorted(f"::/{name}" for name in contents)
    for name, content in contents.items():
        assert tool("mtype", "-i", image, f"::{name}") == content
    # Who reads a seed finds it by its label.
    if shutil.which("blkid"):
        told = tool("blkid", "-p", "-o", "export", image).decode().splitlines()
        assert {"LABEL=cidata", "TYPE=vfat", "VERSION=FAT16"} <= set(told)


def test_the_size_grows_by_clusters():
    # 16 bits of clusters of 512 bytes hold 32 MiB; nearly twice that takes those of 1 KiB.
    for size, sectors in ((1, 1), (32_000_000, 1), (60 << 20, 2)):
        _, ((_, boot), *_) = fat.make("cidata", {"user-data": bytes(size)})
        assert boot[13] == sectors
    with pytest.raises(ValueError, match="too large"):
        fat.make("cidata", {"user-data": Sized(3 << 30)})  # type: ignore[dict-item]


class Sized:
    """As long as it says, without the bytes."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size


def test_the_same_files_give_the_same_bytes_and_others_another_serial(tmp_path):
    files = sources(tmp_path, CONTENTS[0])
    images = [tmp_path / name for name in ("a", "b", "c")]
    write_seed(files, str(images[0]))
    write_seed(files, str(images[1]))
    Path(files[0]).write_bytes(USER + b"#\n")
    write_seed(files, str(images[2]))
    first, second, third = [image.read_bytes() for image in images]
    assert first == second
    assert first[39:43] != third[39:43]


def test_secrets_are_nobody_else_s_and_a_seed_is_replaced_in_one_step(tmp_path):
    image, link = tmp_path / "seed.img", tmp_path / "link"
    files = sources(tmp_path, CONTENTS[0])
    write_seed(files, str(image))
    assert image.stat().st_mode & 0o777 == 0o600
    image.chmod(0o640)
    link.symlink_to(image)
    with open(image, "rb") as running:
        old = running.read()
        Path(files[0]).write_bytes(USER * 2)
        write_seed(files, str(link))
        running.seek(0)
        assert running.read() == old, "a VM that runs would see its disk change"
    assert link.is_symlink()
    assert image.stat().st_mode & 0o777 == 0o640
    assert tool("mtype", "-i", image, "::user-data") == USER * 2
    assert sorted(tmp_path.glob("*.new")) == []


@pytest.mark.parametrize("what", ["image", "itself", "folder", "device", "pipe", "empty"])
def test_nothing_but_a_seed_is_overwritten(tmp_path, what):
    files = sources(tmp_path, CONTENTS[0])
    target = tmp_path / what
    if what == "image":
        target.write_bytes(bytes(1 << 20))
    elif what == "itself":
        target = Path(files[0])
    elif what == "folder":
        target.mkdir()
    elif what == "device":
        target = Path("/dev/null")
    elif what == "pipe":
        os.mkfifo(target)
    else:
        target.touch()
    with pytest.raises(ConfigError, match="is there, and no seed"):
        write_seed(files, str(target))
    assert Path(files[0]).read_bytes() == USER


def test_what_cannot_be_read_is_named(tmp_path):
    files = sources(tmp_path, CONTENTS[0])
    with pytest.raises(ConfigError, match=r"meta-data: /nowhere: No such file"):
        write_seed([files[0], "/nowhere"], str(tmp_path / "s"))
    with pytest.raises(ConfigError, match=r"user-data: .*: Is a directory"):
        write_seed([str(tmp_path), files[1]], str(tmp_path / "s"))
    Path(files[1]).write_bytes(bytes(FILE_BYTES_MAX + 1))
    with pytest.raises(ConfigError, match=r"meta-data: .*has more than 16 MiB"):
        write_seed(files, str(tmp_path / "s"))
    with pytest.raises(ConfigError, match="user-data"):
        write_seed(["/dev/zero", files[1]], str(tmp_path / "s"))
    assert not (tmp_path / "s").exists()


def test_a_full_disk_leaves_nothing_behind(tmp_path):
    files = sources(tmp_path, CONTENTS[0])
    with pytest.raises(HostError, match="/proc/seed"):
        write_seed(files, "/proc/seed")
    with pytest.raises(HostError, match="No such file"):
        write_seed(files, str(tmp_path / "no/seed"))


def test_a_half_written_seed_is_removed(tmp_path, monkeypatch):
    def full(fd: int, data: bytes, offset: int) -> int:
        raise OSError(28, "No space left on device")

    files = sources(tmp_path, CONTENTS[0])
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(HostError, match="No space left"):
        write_seed(files, str(tmp_path / "seed.img"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my-meta-data", "my-user-data"]


@pytest.mark.parametrize(
    ("user_data", "warned"),
    [
        (USER, False), (b"#!/bin/sh\n", False), (b"", False), (b"\x1f\x8b\x08", False),
        (b"## template: jinja\n#cloud-config\n", False), (b"MIME-Version: 1.0\n", False),
        (b"hostname: x\n", True), (b"\xef\xbb\xbf#cloud-config\n", True), (b"\n#!/bin/sh\n", True),
    ],
)  # fmt: skip
def test_user_data_that_cloud_init_passes_over_is_warned_of(tmp_path, user_data, warned):
    files = sources(tmp_path, {"user-data": user_data, "meta-data": META})
    assert bool(write_seed(files, str(tmp_path / "s"))) is warned
