"""`env --unit`: what a systemd unit may give to an instance."""

from __future__ import annotations

import pytest

from vmm.command import unit
from vmm.errors import ConfigError
from vmm.host.pci import HostDevice
from vmm.settings.config import PREFIX

SETTINGS = {
    "KERNEL_FILEPATH": "/k", "SYSTEM_IMAGE_FILEPATH": "/a,/b", "CONFIG_IMAGE_FILEPATH": "/c",
    "CPU_COUNT": "8", "MEMORY_CONFIG": "size=4G",
}  # fmt: skip


def properties(**more: str) -> list[str]:
    return unit.unit_properties({PREFIX + k: v for k, v in {**SETTINGS, **more}.items()})


def test_without_devices_only_kvm():
    gib = 1 << 30
    tasks = unit.TASKS + 8 * 4
    assert properties() == [
        f"MemoryMax={6 * gib}", f"TasksMax={tasks}", "DeviceAllow=", "DeviceAllow=/dev/kvm rw",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("devices", "files"),
    [
        (
            [
                HostDevice("0000:01:00.0", 10, "vfio-pci"),
                HostDevice("0000:01:00.1", 10, "vfio-pci"),
            ],
            ["/dev/vfio/vfio", "/dev/vfio/10"],
        ),
        (
            [HostDevice("0000:01:00.0", 10, "vfio-pci", "/dev/vfio/devices/vfio3")],
            ["/dev/iommu", "/dev/vfio/devices/vfio3"],
        ),
    ],
)
def test_the_files_of_the_devices_that_are_named(monkeypatch, devices, files):
    monkeypatch.setattr(unit, "find_devices", lambda specs: devices)
    found = properties(DEVICE_FILEPATH_LIST="0000:01:00.0")
    assert found[3:] == [f"DeviceAllow={path} rw" for path in ("/dev/kvm", *files)]


def test_bad_settings_give_no_limits():
    with pytest.raises(ConfigError, match="CPU_COUNT"):
        properties(CPU_COUNT="many")
