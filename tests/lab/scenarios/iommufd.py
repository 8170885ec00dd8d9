"""Devices by their own files, /dev/vfio/devices/vfioN: rights, refusals, several at once."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tests.lab.guests.guest_run import Guest, expect
from tests.lab.scenarios.lifecycle import WAIT
from tests.lab.scenarios.passthrough import (
    EDU,
    NVME,
    SHOW_DEVICES,
    bind,
    facts,
    find,
    guest_with,
    name_of,
)

USER = 4242
# Above the guest's RAM, and too little for it.
ENOUGH, TOO_LITTLE = 320 << 20, 64 << 20


def plain_user(guest: Guest, locked: int) -> None:
    """Run it as a user without any privilege who may lock this many bytes."""
    runtime = guest.folder / "run"
    runtime.mkdir(mode=0o700, exist_ok=True)
    guest.env.update(XDG_RUNTIME_DIR=str(runtime), HOME=str(guest.folder))
    for variable in ("KERNEL", "INITRAMFS"):
        name = f"VLLMD_HYPERVISOR_{variable}_FILEPATH"
        own = str(guest.folder / variable.lower())
        if guest.env[name] != own:
            guest.env[name] = shutil.copy(guest.env[name], own)
    for path in (guest.folder, *guest.folder.rglob("*")):
        os.chown(path, USER, USER)
    guest.prefix = [
        "prlimit", f"--memlock={locked}:{locked}",
        "setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--bounding-set=-all",
        "--inh-caps=-all",
    ]  # fmt: skip


def refused(guest: Guest, words: str) -> None:
    """A start ends with 38 and says so."""
    guest.output.unlink(missing_ok=True)
    code = guest.run(60)
    expect(code == 38 and words in guest.text, f"{code} {guest.text}")


def by_its_file_alone(kernel: str, initramfs: str) -> None:
    """Right to the device's file, /dev/iommu and /dev/kvm is enough; each error names its cure."""
    bdf = find(NVME)
    group = bind(bdf)
    cdev = name_of(bdf, "cdev")
    os.chmod("/dev/kvm", 0o666)
    expect(os.stat(f"/dev/vfio/{group}").st_uid == 0, "the group is not root's")
    os.chown(cdev, 0, 0)
    os.chown("/dev/iommu", 0, 0)
    with guest_with(kernel, initramfs, SHOW_DEVICES, cdev) as guest:
        plain_user(guest, ENOUGH)
        refused(guest, f"chown {USER} /dev/iommu")
        os.chown("/dev/iommu", USER, USER)
        refused(guest, f"chown {USER} {cdev}")
        os.chown(cdev, USER, USER)
        plain_user(guest, TOO_LITTLE)
        refused(guest, f"RLIMIT_MEMLOCK is {TOO_LITTLE >> 20} MiB")
        plain_user(guest, ENOUGH)
        code = guest.run(120)
        expect(code == 0 and facts(guest.text).get("0000:00:05.0") == NVME, guest.text)
    os.chown(cdev, 0, 0)
    os.chown("/dev/iommu", 0, 0)


def two_devices_by_one_file(kernel: str, initramfs: str) -> None:
    """One is named by its file, so both are used by iommufd, in one address space."""
    nvme, edu = find(NVME), find(EDU)
    bind(nvme)
    bind(edu)
    with guest_with(kernel, initramfs, SHOW_DEVICES, f"{edu},{name_of(nvme, 'cdev')}") as guest:
        code = guest.run(timeout=120)
        text, state = guest.text, guest.status()
    expect(code == 0, f"{code}\n{text}")
    seen = facts(text)
    expect((seen.get("0000:00:05.0"), seen.get("0000:00:06.0")) == (EDU, NVME), text)
    devices = [device for device in state["devices"] if "bdf" in device]
    expect([device["backend"] for device in devices] == ["iommufd"] * 2, str(devices))
    # The edu device is decoded from the start; iommufd has no way for it, and nothing fails.
    expect("iommufd maps no device memory by its address" in devices[0]["p2p"], str(devices))


def a_group_and_a_file_are_refused(kernel: str, initramfs: str) -> None:
    """One VM has one set of mappings: the message names both, and what to write instead."""
    nvme, edu = find(NVME), find(EDU)
    group = f"/dev/vfio/{bind(edu)}"
    bind(nvme)
    cdev = name_of(nvme, "cdev")
    with guest_with(kernel, initramfs, WAIT, f"{group},{cdev}") as guest:
        code, told = guest.verb("start")
    expect(code == 2 and group in told and cdev in told and "PCI addresses" in told, told)


def without_the_group_s_file(kernel: str, initramfs: str) -> None:
    """A kernel without groups shows none: the PCI address alone means iommufd then."""
    edu = find(EDU)
    file = Path(f"/dev/vfio/{bind(edu)}")
    hidden = file.with_name("hidden")
    file.rename(hidden)
    try:
        with guest_with(kernel, initramfs, SHOW_DEVICES, edu) as guest:
            code = guest.run(timeout=120)
            text, state = guest.text, guest.status()
    finally:
        hidden.rename(file)
    expect(code == 0 and facts(text).get("0000:00:05.0") == EDU, f"{code}\n{text}")
    (device,) = [device for device in state["devices"] if "bdf" in device]
    expect(device["backend"] == "iommufd", str(device))


def not_offered(kernel: str, initramfs: str) -> None:
    """Where the kernel has no iommufd, a device's file is refused with what to write instead."""
    edu = find(EDU)
    bind(edu)
    (number,) = os.listdir(f"/sys/bus/pci/devices/{edu}/vfio-dev")
    expect(not os.path.exists("/dev/iommu"), "this lab's kernel has iommufd")
    with guest_with(kernel, initramfs, WAIT, f"/dev/vfio/devices/{number}") as guest:
        code, told = guest.verb("start")
    expect(code == 38 and "there is no /dev/iommu" in told and edu in told, f"{code} {told}")
