"""A file with two roles is found, whatever its names; files that may be shared are not."""

from __future__ import annotations

import os

import pytest

from vmm.errors import BusyError
from vmm.host import roles
from vmm.host.image_lock import lock_image
from vmm.host.roles import Extent, file_roles
from vmm.settings.images import ImageSpec
from vmm.settings.parse import Endpoint


@pytest.fixture
def files(tmp_path):
    for name in ("kernel", "initramfs", "system", "config", "log"):
        (tmp_path / name).write_bytes(bytes(512))
    (tmp_path / "link").symlink_to("system")
    os.link(tmp_path / "system", tmp_path / "hard")
    (tmp_path / "folder").symlink_to(".")
    (tmp_path / "dangling").symlink_to("new")
    return tmp_path


def settings(folder, **changes):
    values = {
        "kernel_path": "kernel", "initramfs_path": "initramfs", "system": "system",
        "config": "config", "log": "log", "console": "console.log", "serial": "serial.log",
        **changes,
    }  # fmt: skip
    paths = {key: f"{folder}/{name}" for key, name in values.items()}
    return {
        "kernel_path": paths["kernel_path"], "initramfs_path": paths["initramfs_path"],
        "system_images": (ImageSpec(paths["system"]),),
        "config_images": (ImageSpec(paths["config"]),), "log_destinations": (paths["log"],),
        "console": Endpoint("file", paths["console"]),
        "serial": Endpoint("socket", paths["serial"]),
    }  # fmt: skip


def problems(values):
    return [finding for finding in file_roles(values) if finding.code]


def test_each_file_for_itself(files):
    assert not problems(settings(files))
    assert not problems({})


@pytest.mark.parametrize(
    "changes",
    [
        {"log": "system"},
        {"log": "link"},
        {"log": "hard"},
        {"log": "folder/hard"},
        {"log": "config"},
        {"log": "kernel"},
        {"console": "system"},
        {"console": "folder/link"},
        {"console": "initramfs"},
        {"serial": "hard"},
        {"config": "hard"},
        {"config": "link"},
        {"kernel_path": "system"},
        {"initramfs_path": "config"},
        {"initramfs_path": "kernel"},
        {"console": "log"},
        {"console": "same", "serial": "same"},
        {"log": "new", "console": "folder/new"},
        {"log": "new", "console": "dangling"},
    ],
    ids=str,
)
def test_two_roles(files, changes):
    (found,) = problems(settings(files, **changes))
    assert found.code == 2
    assert found.found.startswith("VLLMD_HYPERVISOR_")


def test_devices_without_content_are_shared(files):
    values = settings(files)
    values["log_destinations"] = ("/dev/null", "/dev/stdout", "/dev/stderr", "journald", "syslog")
    values["console"] = values["serial"] = Endpoint("file", "/dev/null")
    assert not problems(values)
    values["console"] = values["serial"] = Endpoint("tty")
    assert not problems(values)


@pytest.mark.parametrize("stream", [1, 2])
def test_a_stream_that_leads_into_an_image(files, stream):
    values = {**settings(files), "log_destinations": ("/dev/stdout",)}
    saved = os.dup(stream)
    try:
        with open(files / "system", "ab") as file:
            os.dup2(file.fileno(), stream)
        found = problems(values)
        with open(files / "elsewhere", "ab") as file:
            os.dup2(file.fileno(), stream)
        assert not problems(values)
    finally:
        os.dup2(saved, stream)
        os.close(saved)
    assert len(found) == 1
    assert "SYSTEM_IMAGE_FILEPATH" in found[0].found


DISK, PARTITION1, PARTITION2 = os.makedev(8, 0), os.makedev(8, 1), os.makedev(8, 2)
VOLUME1, VOLUME2 = os.makedev(253, 0), os.makedev(253, 1)
LOOP_HALF, LOOP_REST = os.makedev(7, 0), os.makedev(7, 1)


@pytest.fixture
def sys_block(tmp_path, monkeypatch):
    """A disk with two partitions; two volumes on the second; two loop devices over one file."""
    tree = tmp_path / "sys"
    disk = tree / "block/sda"
    for number, start in ((1, 2048), (2, 4096)):
        folder = disk / f"sda{number}"
        folder.mkdir(parents=True)
        for name, value in (("partition", number), ("start", start), ("size", 2048),
                            ("dev", f"8:{number}")):  # fmt: skip
            (folder / name).write_text(f"{value}\n")
    (disk / "dev").write_text("8:0\n")
    image = tmp_path / "backing.img"
    image.write_bytes(bytes(8192))
    for number, offset in ((0, 0), (1, 4096)):
        volume = tree / f"block/dm-{number}/slaves"
        volume.mkdir(parents=True)
        (volume / "sda2").symlink_to(disk / "sda2")
        loop = tree / f"block/loop{number}/loop"
        loop.mkdir(parents=True)
        for name, value in (("backing_file", image), ("offset", offset), ("sizelimit", 4096)):
            (loop / name).write_text(f"{value}\n")
    known = tree / "dev"
    known.mkdir()
    for name, target in (("8:0", "sda"), ("8:1", "sda/sda1"), ("8:2", "sda/sda2"),
                         ("253:0", "dm-0"), ("253:1", "dm-1"), ("7:0", "loop0"),
                         ("7:1", "loop1")):  # fmt: skip
        (known / name).symlink_to(tree / "block" / target)
    monkeypatch.setattr(roles, "SYS_BLOCK", str(known))
    return image


def meet(one: int, two: int) -> bool:
    first, second = (
        list(roles._device_extents(Extent(("device", number)), 0)) for number in (one, two)
    )
    return any(a.meets(b) for a in first for b in second)


@pytest.mark.parametrize(
    ("one", "two", "common"),
    [
        (DISK, DISK, True),
        (DISK, PARTITION1, True),
        (PARTITION2, DISK, True),
        (PARTITION1, PARTITION2, False),
        (VOLUME1, DISK, True),
        (VOLUME1, PARTITION2, True),
        (VOLUME1, PARTITION1, False),
        (VOLUME1, VOLUME2, False),
        (LOOP_HALF, LOOP_REST, False),
        (LOOP_HALF, LOOP_HALF, True),
        (LOOP_HALF, DISK, False),
    ],
)
def test_devices_with_bytes_in_common(sys_block, one, two, common):
    assert meet(one, two) is common
    assert meet(two, one) is common


def test_a_loop_device_is_its_file(sys_block):
    found = os.stat(sys_block)
    (file,) = roles.extents_of(found)
    loop = list(roles._device_extents(Extent(("device", LOOP_REST)), 0))
    assert any(one.meets(file) for one in loop)


@pytest.mark.parametrize("read_only", [False, True], ids=["writes", "reads"])
@pytest.mark.parametrize("output", ["log", "console"])
def test_an_output_that_another_vm_has_as_its_image(files, output, read_only):
    (files / "image").write_bytes(bytes(4096))
    values = settings(files, **{output: "image"})
    assert not problems(values)
    fd = os.open(files / "image", os.O_RDWR)
    try:
        lock_image("image", fd, read_only)
        (found,) = problems(values)
    finally:
        os.close(fd)
    assert found.code == BusyError.exit_code
    assert "has it locked" in found.found
    assert not problems(values)


def test_who_may_only_write_its_log_is_no_problem(files):
    (files / "log").chmod(0o200)
    assert not problems(settings(files))
