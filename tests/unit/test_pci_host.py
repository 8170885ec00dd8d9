"""From what users name to devices, over a sysfs of files."""

from __future__ import annotations

import pytest

from vmm import pci_host
from vmm.config_parse import parse_device
from vmm.errors import ConfigError, HostError

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
    monkeypatch.setattr(pci_host, "SYS_DEVICES", str(devices))
    monkeypatch.setattr(pci_host, "SYS_GROUPS", str(groups))
    monkeypatch.setattr(pci_host, "SYS_CDEVS", str(cdevs))
    return devices


def find(*texts: str) -> list[str]:
    return [device.bdf for device in pci_host.find_devices([parse_device(t) for t in texts])]


def test_every_name_of_a_device(sysfs):
    assert find(GPU) == [GPU]
    assert find("/dev/vfio/devices/vfio3") == [GPU]
    assert find(AUDIO, GPU) == [AUDIO, GPU]
    (device,) = pci_host.find_devices([parse_device(GPU)])
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


def test_everything_is_told_at_once(sysfs):
    with pytest.raises(HostError) as told:
        find(LOST, NIC)
    assert LOST in str(told.value)
    assert NIC in str(told.value)
