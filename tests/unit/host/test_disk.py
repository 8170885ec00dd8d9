"""Serials: unique, stable, settable; and formats that are not raw."""

from __future__ import annotations

import os
import shlex
import stat
from types import SimpleNamespace

import pytest

from tests.support.fake_host import FakeHost
from vmm.host.disk import make_serials_distinct, open_disks
from vmm.host.image_format import conversion, foreign_format
from vmm.host.preflight import images as check_images
from vmm.host.serial import default_serial
from vmm.settings.images import ImageSpec


def numbers(device: int, inode: int, special: int = 0) -> SimpleNamespace:
    kind = stat.S_IFBLK if special else stat.S_IFREG
    return SimpleNamespace(st_dev=device, st_rdev=special, st_ino=inode, st_mode=kind)


def test_wide_inode_numbers_have_serials_of_their_own():
    wide = [numbers(64769, (1 << 63) + n) for n in range(1000)]
    wide += [numbers((1 << 60) + n, 7) for n in range(1000)]
    serials = {default_serial(one) for one in wide}
    assert len(serials) == len(wide)
    assert all(len(serial) == 20 for serial in serials)
    assert default_serial(wide[0]) == default_serial(wide[0])


def test_a_serial_that_fits_is_as_cloud_hypervisor_writes_it():
    assert default_serial(numbers(64769, 1234)) == b"6476901234"


def test_a_block_device_is_called_what_its_hardware_says(tmp_path):
    block = tmp_path / "sys/dev/block"

    def put(place, **files):
        (block / place).mkdir(parents=True)
        for name, text in files.items():
            path = block / place / name.replace("__", "/")
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"{text}\n")

    def serial(major, minor, inode=7):
        return default_serial(numbers(6, inode, os.makedev(major, minor)), FakeHost(tmp_path))

    put("8:0", device__wwid="naa.5000c500", dev="8:0")
    put("8:0/sda1", partition=1)
    put("8:0/sda2", partition=2)
    for minor in (1, 2):
        (block / f"8:{minor}").symlink_to(f"8:0/sda{minor}")
    put("253:0", dm__uuid="LVM-abc")
    put("259:0", wwid="eui.0025")
    put("7:0", loop__backing_file="/a.img", loop__offset=0)
    put("7:1", loop__backing_file="/a.img", loop__offset=4096)
    put("11:0")
    devices = [(8, 0), (8, 1), (8, 2), (253, 0), (259, 0), (7, 0), (7, 1), (11, 0), (11, 1)]
    serials = [serial(*device) for device in devices]
    assert len(set(serials)) == len(devices)
    assert all(len(one) == 20 for one in serials)
    assert [serial(*device, inode=99) for device in devices] == serials
    put("8:16", device__wwid="naa.5000c500")  # the disk after a boot that found it later
    assert serial(8, 16) == serial(8, 0)


def test_serials_of_a_machine(tmp_path):
    paths = [str(tmp_path / name) for name in "abc"]
    for path in paths:
        with open(path, "wb") as file:
            file.truncate(1 << 20)
    given = [ImageSpec(paths[0]), ImageSpec(paths[1], None, "mine")]
    disks = open_disks(given, [ImageSpec(paths[2])])
    serials = [disk.serial for disk in disks]
    assert serials[1] == b"mine"
    assert len(set(serials)) == 3
    # As numbers without a gap may do: 1 and 23 read like 12 and 3.
    disks[0].serial = disks[2].serial
    make_serials_distinct(disks)
    assert len({disk.serial for disk in disks}) == 3
    for disk in disks:
        disk.close()
    again = open_disks(given, [ImageSpec(paths[2])])
    assert [disk.serial for disk in again] == serials
    for disk in again:
        disk.close()


def test_one_serial_for_two_images_is_refused(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(bytes(512))
    one, two = (ImageSpec(str(tmp_path / name), None, "same") for name in ("a", "b"))
    refused = [finding for finding in check_images([one], [two]) if finding.code]
    assert [finding.code for finding in refused] == [2]
    assert "serial=same" in refused[0].found


HEADS = {
    "qcow": b"QFI\xfb\0\0\0\x01",
    "qcow2": b"QFI\xfb\0\0\0\x03",
    "qed": b"QED\0",
    "vmdk": b"KDMV\x01\0\0\0",
    "vhdx": b"vhdxfile",
    "vpc": b"conectix",
    "vdi": b"<<< Oracle VM VirtualBox Disk Image >>>\n".ljust(64, b"\0") + b"\x7f\x10\xda\xbe",
    "parallels": b"WithouFreSpacExt",
}


@pytest.mark.parametrize("name", HEADS)
def test_formats_by_their_first_bytes(tmp_path, name):
    path = tmp_path / f"disk.{name}"
    path.write_bytes(HEADS[name].ljust(1 << 16, b"\0"))
    assert foreign_format(str(path)) == name
    (finding,) = check_images([ImageSpec(str(path))], [])
    assert finding.code == 2
    assert finding.cure == (f"qemu-img convert -f {name} -O raw {path} {tmp_path}/disk.raw",)
    assert f"{path},format=raw" in finding.line
    assert not check_images([ImageSpec(str(path), "raw")], [])[0].code


@pytest.mark.parametrize(("magic", "name"), [(b"conectix", "vpc"), (b"koly", "dmg")])
def test_formats_by_their_last_bytes(tmp_path, magic, name):
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1 << 16) + magic.ljust(512, b"\0"))
    assert foreign_format(str(path)) == name


def test_a_vmdk_descriptor_of_a_few_lines(tmp_path):
    path = tmp_path / "disk.vmdk"
    path.write_text("# Disk DescriptorFile\nversion=1\n")
    assert foreign_format(str(path)) == "vmdk"


@pytest.mark.parametrize("content", [b"", b"x", bytes(1 << 16), b"LUKS\xba\xbe" + bytes(4096)])
def test_raw_images(tmp_path, content):
    path = tmp_path / "disk.img"
    path.write_bytes(content)
    assert foreign_format(str(path)) is None


def test_the_conversion_can_be_typed_as_it_is(tmp_path):
    path = str(tmp_path / "my disk's.qcow2")
    words = shlex.split(conversion(path, "qcow2"))
    assert words == [
        "qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, str(tmp_path / "my disk's.raw"),
    ]  # fmt: skip
    (tmp_path / "my disk's.raw").write_bytes(b"precious")
    assert shlex.split(conversion(path, "qcow2"))[-1] == f"{path}.raw"


def test_hard_links_have_one_serial(tmp_path):
    (tmp_path / "a").write_bytes(bytes(512))
    os.link(tmp_path / "a", tmp_path / "b")
    assert default_serial(os.stat(tmp_path / "a")) == default_serial(os.stat(tmp_path / "b"))
