"""From what users name to devices, over a sysfs of files."""

from __future__ import annotations

import pytest

from vmm.errors import ConfigError, HostError
from vmm.host import pci, vfio_backend
from vmm.host.files import Host
from vmm.settings.parse import DeviceSpec, parse_device

GPU, AUDIO, BRIDGE, NIC, LOST = (
    "0000:01:00.0", "0000:01:00.1", "0000:00:01.0", "0000:02:00.0", "0000:03:00.0",
)  # fmt: skip


@pytest.fixture
def sysfs(tmp_path, monkeypatch):
    """Two GPUs' functions and a bridge in group 10, a NIC of the host in 11, one without IOMMU."""
    devices, groups, cdevs = tmp_path / "devices", tmp_path / "groups", tmp_path / "cdevs"

    def add(bdf, pci_class, group, driver):
        folder = devices / bdf
        folder.mkdir(parents=True)
        (folder / "class").write_text(f"0x{pci_class:06x}\n")
        if group is not None:
            members = groups / str(group) / "devices"
            members.mkdir(parents=True, exist_ok=True)
            (members / bdf).symlink_to(folder)
            (folder / "iommu_group").symlink_to(groups / str(group))
        if driver:
            (folder / "driver").symlink_to(tmp_path / "drivers" / driver)

    add(GPU, 0x030200, 10, "vfio-pci")
    add(AUDIO, 0x040300, 10, "vfio-pci")
    add(BRIDGE, 0x060400, 10, "pcieport")
    add(NIC, 0x020000, 11, "e1000e")
    add(LOST, 0x020000, None, None)
    (cdevs / "vfio3").mkdir(parents=True)
    (cdevs / "vfio3/device").symlink_to(devices / GPU)
    monkeypatch.setattr(pci, "SYS_DEVICES", str(devices))
    monkeypatch.setattr(pci, "SYS_GROUPS", str(groups))
    monkeypatch.setattr(pci, "SYS_CDEVS", str(cdevs))
    return devices


def find(*texts: str) -> list[str]:
    return [device.bdf for device in pci.find_devices([parse_device(t) for t in texts])]


def test_every_name_of_a_device(sysfs):
    assert find(GPU) == [GPU]
    assert find(AUDIO, GPU) == [AUDIO, GPU]
    (device,) = pci.find_devices([parse_device(GPU)])
    assert (device.group, device.driver) == (10, "vfio-pci")


def test_a_group_is_all_of_its_endpoints(sysfs):
    assert find("/dev/vfio/10") == [GPU, AUDIO]


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["0000:09:00.0"], "no PCI device 0000:09:00.0"),
        (["/dev/vfio/77"], "no device is in this IOMMU group"),
        (["/dev/vfio/devices/vfio9"], "no such VFIO device"),
        (["/dev/vfio/10", GPU], f"{GPU} is given twice"),
    ],
)
def test_names_that_stand_for_nothing(sysfs, texts, words):
    with pytest.raises(ConfigError, match=words):
        find(*texts)


def test_hosts_that_cannot(sysfs):
    with pytest.raises(HostError, match="no IOMMU group"):
        find(LOST)
    with pytest.raises(HostError, match=f"{NIC} of IOMMU group 11 .* driver e1000e .*unbind"):
        find(NIC)
    (sysfs / AUDIO / "driver").unlink()
    with pytest.raises(HostError, match=f"{AUDIO} of IOMMU group 10 has no driver"):
        find(GPU)


def test_only_a_vfio_driver_gives_a_device_away(sysfs):
    """pci-stub harms no group, but gives nothing away; variants of vfio-pci do."""
    driver = sysfs / AUDIO / "driver"
    driver.unlink()
    driver.symlink_to("drivers/pci-stub")
    assert find(GPU) == [GPU]
    with pytest.raises(
        HostError, match=f"{AUDIO} of IOMMU group 10 is kept by the driver pci-stub"
    ):
        find(AUDIO)
    driver.unlink()
    driver.symlink_to("drivers/mlx5_vfio_pci")
    assert find(AUDIO) == [AUDIO]


def test_a_bridge_stays_with_the_host(sysfs):
    with pytest.raises(ConfigError, match=f"{BRIDGE} is a PCI bridge"):
        find(BRIDGE)


def test_the_whole_group_is_shown(sysfs):
    _, findings = pci.look_up_devices([parse_device(GPU)], Host())
    (told,) = [finding.found for finding in findings if finding.name == "iommu-group"]
    assert told == (f"IOMMU group 10: {BRIDGE} (pcieport), {GPU} (vfio-pci), {AUDIO} (vfio-pci)")


@pytest.mark.parametrize(
    ("files", "level", "words"),
    [
        ({"reset_method": "flr bus\n"}, "ok", "reset by flr, bus"),
        ({"reset": ""}, "ok", "can be reset"),
        ({}, "warning", "cannot be reset"),
        ({"reset_method": "\n"}, "warning", "cannot be reset"),
    ],
)
def test_reset_methods(sysfs, files, level, words):
    for name, text in files.items():
        (sysfs / GPU / name).write_text(text)
    finding = pci.reset_methods(GPU, Host())
    assert finding.level == level
    assert words in finding.found


def test_bar_bytes(sysfs):
    lines = [
        "0x00000000f6000000 0x00000000f6ffffff 0x0000000000040200",
        "0x000000e000000000 0x000000e7ffffffff 0x000000000014220c",
        "0x0000000000000000 0x0000000000000000 0x0000000000000000",
        "0x000000000000e000 0x000000000000e07f 0x0000000000040101",  # ports
        "0x0000000000000000 0x0000000000000000 0x0000000000000000",
        "0x0000000000000000 0x0000000000000000 0x0000000000000000",
        "0x00000000f7000000 0x00000000f707ffff 0x0000000000046200",  # the ROM
    ]
    (sysfs / GPU / "resource").write_text("\n".join(lines))
    assert pci.bar_bytes(GPU) == (16 << 20) + (32 << 30)
    assert pci.bar_bytes(NIC) == 0


def test_candidates(sysfs):
    found = {finding.subject: finding.found for finding in pci.candidates(Host())}
    assert list(found) == [GPU, AUDIO, NIC]  # no bridge, nothing without a group
    assert found[GPU].endswith(f"IOMMU group 10, driver vfio-pci; with {AUDIO}")
    assert found[NIC].endswith("IOMMU group 11, driver e1000e")


def test_cures_are_commands_in_order(sysfs):
    commands = pci.bind_commands(NIC, "e1000e", Host())
    assert [word in command for word, command in zip(
        ("unbind", "driver_override", "drivers_probe"), commands[-3:], strict=True
    )] == [True] * 3  # fmt: skip
    assert "unbind" not in " ".join(pci.bind_commands(LOST, None, Host()))


def test_everything_is_told_at_once(sysfs):
    with pytest.raises(HostError) as told:
        find(LOST, NIC)
    assert LOST in str(told.value)
    assert NIC in str(told.value)


@pytest.fixture
def vfio_files(sysfs, tmp_path, monkeypatch):
    """What /dev has: groups 10, and the GPU's functions' own files with /dev/iommu."""
    dev = tmp_path / "dev"
    (dev / "vfio/devices").mkdir(parents=True)
    for bdf, name in ((GPU, "vfio3"), (AUDIO, "vfio4")):
        (sysfs / bdf / "vfio-dev" / name).mkdir(parents=True)
        (dev / "vfio/devices" / name).touch()
    (dev / "vfio/10").touch()
    (dev / "iommu").touch()
    monkeypatch.setattr(vfio_backend, "SYS_DEVICES", str(sysfs))
    monkeypatch.setattr(vfio_backend, "DEV_VFIO", str(dev / "vfio"))
    monkeypatch.setattr(vfio_backend, "DEV_IOMMU", str(dev / "iommu"))
    return dev


def cdevs(dev, *forms: str) -> list[str]:
    """The files chosen; a device's own file is named as in ``dev``."""
    specs = [
        DeviceSpec("cdev", f"{dev}/vfio/devices/{form}") if form.startswith("vfio") else
        parse_device(form)
        for form in forms
    ]  # fmt: skip
    return [device.cdev.rpartition("/")[2] for device in pci.find_devices(specs)]


def test_which_interface_a_name_stands_for(vfio_files):
    assert cdevs(vfio_files, GPU, AUDIO) == ["", ""]
    assert cdevs(vfio_files, "/dev/vfio/10") == ["", ""]
    assert cdevs(vfio_files, "vfio3") == ["vfio3"]
    assert cdevs(vfio_files, AUDIO, "vfio3") == ["vfio4", "vfio3"]  # one names it, all have it


def test_a_kernel_without_groups(vfio_files):
    (vfio_files / "vfio/10").unlink()
    assert cdevs(vfio_files, GPU, AUDIO) == ["vfio3", "vfio4"]
    (vfio_files / "iommu").unlink()
    assert cdevs(vfio_files, GPU) == [""]  # neither: the error names the group's file


def test_a_group_beside_a_device_s_own_file(vfio_files):
    other = vfio_files / "vfio/devices/vfio3"
    specs = [DeviceSpec("group", "/dev/vfio/11"), DeviceSpec("cdev", str(other))]
    with pytest.raises(ConfigError, match=f"/dev/vfio/11 is a group and {other} a device by itse"):
        vfio_backend.choose_cdevs("LIST", specs, {GPU: 10, NIC: 11})


@pytest.mark.parametrize("missing", ["iommu", "vfio/devices/vfio3", "vfio/devices/vfio4"])
def test_what_is_not_offered_is_named_with_its_cure(vfio_files, missing):
    (vfio_files / missing).unlink()
    match = "PCI address" if missing.endswith("4") else f"there is no {vfio_files / missing}"
    with pytest.raises(HostError, match=match):
        cdevs(vfio_files, "vfio3", AUDIO)
