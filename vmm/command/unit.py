"""`env --unit`: what a systemd unit may give to an instance, from its settings."""

from __future__ import annotations

from vmm.host.pci import find_devices
from vmm.settings.config import Config

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

GIB = 1 << 30
# Threads that every instance has, io_uring's own included, which it makes and ends as it likes.
TASKS = 256
VFIO = "/dev/vfio"


def unit_properties(environment: Mapping[str, str]) -> list[str]:
    """Lines for `systemctl set-property`; ConfigError and HostError as `start` has them.

    Source: systemd.resource-control(5). An empty DeviceAllow= takes back what was given before.
    """
    config = Config.from_env(environment)
    disks = len(config.system_images) + len(config.config_images)
    lines = [
        f"MemoryMax={memory_max(config.memory.size)}",
        f"TasksMax={TASKS + config.cpu_count * (1 + disks)}",
        "DeviceAllow=",
    ]
    return lines + [f"DeviceAllow={path} rw" for path in device_files(config)]


def memory_max(size: int) -> int:
    """Bytes for a guest of ``size`` bytes.

    Page tables (the host's and KVM's: a 128th for pages of 4 KiB), the VMM itself, and what
    the host keeps of its disks: less makes those slow, and a VMM that is broken into takes no more.
    """
    return size + size // 4 + GIB


def device_files(config: Config) -> list[str]:
    """The host's files behind the settings: KVM's, and those of the devices that are named."""
    paths = ["/dev/kvm"]
    for device in find_devices(config.devices) if config.devices else []:
        paths += (
            ["/dev/iommu", device.cdev]
            if device.cdev
            else [f"{VFIO}/vfio", f"{VFIO}/{device.group}"]
        )
    return list(dict.fromkeys(paths))
