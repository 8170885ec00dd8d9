"""Checks over a host of files: device nodes, locked memory, VFIO, memory; and their cures."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tests.support.fake_host import FakeHost
from vmm.check import devices, resources
from vmm.host import nodes, pci, preflight, vfio
from vmm.host.finding import OK, PROBLEM, WARNING
from vmm.host.memlock import memlock
from vmm.settings.memory import MemoryConfig

MIB = 1 << 20
LIMITS = "Max locked memory         {}              {}              bytes     \n"
STATUS = "Name:\tx\nCapEff:\t{:016x}\n"
IDENTITY = "         0          0 4294967295\n"


@pytest.fixture
def host(tmp_path):
    return FakeHost(tmp_path)


@pytest.mark.parametrize(
    ("mode", "gid", "cure"),
    [
        (0o660, 104, ["usermod -aG kvm alice"]),
        (0o660, 6, ["usermod -aG disk alice"]),
        (0o600, 0, ["chgrp kvm /dev/kvm", "chmod 660 /dev/kvm", "usermod -aG kvm alice"]),
        (0o660, 0, ["chgrp kvm /dev/kvm", "chmod 660 /dev/kvm", "usermod -aG kvm alice"]),
        (0o640, 104, ["chgrp kvm /dev/kvm", "chmod 660 /dev/kvm", "usermod -aG kvm alice"]),
    ],
)
def test_kvm_of_others(host, mode, gid, cure):
    finding = nodes.kvm_node(host.deny("/dev/kvm", mode, gid))
    assert (finding.level, finding.code) == (PROBLEM, 38)
    assert list(finding.cure) == cure
    assert finding.as_root
    assert finding.line == (
        f"no permission to open /dev/kvm (as root: {'; '.join(cure)}; log in again)"
    )


def test_kvm_and_a_group_joined_since_the_login(host):
    host.add("/etc/group", "kvm:x:104:bob,alice\n")
    finding = nodes.kvm_node(host.deny("/dev/kvm", 0o660, 104))
    assert (finding.cure, finding.advice) == ((), "log in again")


def test_kvm_and_a_host_without_its_group(host):
    host.add("/etc/group", "root:x:0:\n")
    finding = nodes.kvm_node(host.deny("/dev/kvm", 0o600, 0))
    assert finding.cure[0] == "groupadd --system kvm"


def test_kvm_and_a_user_without_a_name(host):
    host.acting = 4711
    assert nodes.kvm_node(host.deny("/dev/kvm", 0o600, 0)).cure == ("chown 4711 /dev/kvm",)


def test_kvm_withheld_from_root(host):
    host.acting = 0
    finding = nodes.kvm_node(host.deny("/dev/kvm", 0o600, 0))
    assert finding.cure == ()
    assert "DeviceAllow" in finding.advice
    host.denied.clear()
    assert nodes.kvm_node(host).level == OK
    # The file's mode says yes, and opening it failed: a device control group.
    assert "DeviceAllow" in nodes.kvm_refused(host).advice


@pytest.mark.parametrize(
    ("flags", "cure"), [("fpu vmx", ("modprobe kvm_intel",)), ("fpu svm", ("modprobe kvm_amd",)),
                        ("fpu", ())]
)  # fmt: skip
def test_no_kvm(host, flags, cure):
    host.add("/proc/cpuinfo", f"processor\t: 0\nflags\t\t: {flags}\nbugs\t: vmx svm\n")
    finding = nodes.kvm_node(host)
    assert finding.cure == cure
    assert "this host has no KVM" in finding.found
    assert finding.remedy


def test_vfio_nodes(host):
    assert nodes.vfio_container(host).cure == ("modprobe vfio-pci",)
    assert nodes.vfio_container(host.add("/dev/vfio/vfio")).level == OK
    host.denied.add("/dev/vfio/vfio")
    assert nodes.vfio_container(host).cure == ("chmod 666 /dev/vfio/vfio",)
    finding = nodes.vfio_group(host, 7)
    assert "does not exist yet" in finding.found
    assert finding.cure == ("chown alice /dev/vfio/7",)
    finding = nodes.vfio_group(host.deny("/dev/vfio/7", 0o600, 0), 7)
    assert finding.found == "no permission to open /dev/vfio/7"
    assert 'OWNER="alice"' in finding.advice
    host.denied.clear()
    assert nodes.vfio_group(host, 7).level == OK
    host.acting = 0
    assert nodes.vfio_group(host, 8) is None


def limited(host, soft, hard="unlimited", capabilities=0, uid_map=IDENTITY):
    host.add("/proc/self/limits", "Limit  Soft\n" + LIMITS.format(soft, hard))
    host.add("/proc/self/status", STATUS.format(capabilities))
    return host.add("/proc/self/uid_map", uid_map)


@pytest.mark.parametrize(
    ("soft", "ram", "bars", "iommufd", "level"),
    [
        ("unlimited", 1 << 40, 0, True, OK),
        (256 * MIB, 256 * MIB, 0, False, OK),
        (256 * MIB - 4096, 256 * MIB, 0, False, PROBLEM),
        (256 * MIB, 256 * MIB, 4096, False, OK),
        (256 * MIB, 256 * MIB, 4096, True, PROBLEM),
        (257 * MIB, 256 * MIB, 4096, True, OK),
    ],
)
def test_locked_memory(host, soft, ram, bars, iommufd, level):
    assert memlock(limited(host, soft, soft), ram, bars, iommufd).level == level


def test_locked_memory_and_its_cure(host):
    finding = memlock(limited(host, 8 * MIB, 8 * MIB), 256 * MIB, 16384)
    assert finding.cure == (
        "echo 'alice - memlock 263168' >/etc/security/limits.d/vllmd-hypervisor-alice.conf",
    )
    assert finding.as_root
    assert "256 MiB" in finding.found
    assert "8 MiB" in finding.found
    finding = memlock(limited(host, 8 * MIB, 1 << 40), 256 * MIB, 0)
    assert finding.cure == ("ulimit -S -l 262144",)
    assert not finding.as_root


def test_the_capability_frees_from_the_limit(host):
    assert memlock(limited(host, 4096, 4096, 1 << 14), 1 << 30, 0).level == OK
    assert memlock(limited(host, 4096, 4096, ~(1 << 14) & 0xFFFF), 1 << 30, 0).level == PROBLEM
    # The root of a user namespace has it over that only.
    inside = limited(host, 4096, 4096, 1 << 14, "         0       1000          1\n")
    assert memlock(inside, 1 << 30, 0).level == PROBLEM


def test_modules(host):
    def levels(needed):
        return [finding.level for finding in vfio.modules(host, needed)]

    assert levels(True) == [WARNING, PROBLEM]
    assert levels(False) == [WARNING, WARNING]
    host.add("/dev/iommu")
    assert levels(True) == [WARNING, WARNING]
    host.add("/sys/bus/pci/drivers/vfio-pci/bind").add("/sys/module/vfio_iommu_type1/refcnt")
    assert levels(True) == [OK, OK]


@pytest.mark.parametrize(
    ("interrupts", "unsafe", "level"),
    [
        (" 24:  1  IR-PCI-MSI 1-edge  nvme0q0", "N", OK),
        (" 24:  1  PCI-MSI 1-edge  nvme0q0", "N", PROBLEM),
        (" 24:  1  PCI-MSI 1-edge  nvme0q0", "Y", WARNING),
        (" 24:  1  PCI-MSI 1-edge  nvme0q0", None, None),
    ],
)
def test_interrupt_remapping(host, interrupts, unsafe, level):
    host.add("/proc/interrupts", f"            CPU0\n{interrupts}\n")
    if unsafe is not None:
        host.add(vfio.UNSAFE, f"{unsafe}\n")
    finding = vfio.interrupt_remapping(host)
    assert (finding and finding.level) == level
    if level == PROBLEM:
        assert finding.cure == (f"echo Y >{vfio.UNSAFE}",)


def test_reserved_regions(host):
    path = "/sys/kernel/iommu_groups/7/reserved_regions"
    below, above = (0, 3 << 30), (4 << 30, 1 << 40)
    assert vfio.reserved_regions(host, 7, [below]) is None
    host.add(
        path,
        "0x00000000000a0000 0x00000000000bffff direct-relaxable\n"
        "0x00000000fee00000 0x00000000feefffff msi\n"
        "0x000000fd00000000 0x000000ffffffffff reserved\n",
    )
    assert vfio.reserved_regions(host, 7, [below]).level == OK
    assert vfio.reserved_regions(host, 7, [below, (4 << 30, 0xFC << 32)]).level == OK
    finding = vfio.reserved_regions(host, 7, [below, above])
    assert finding.level == PROBLEM
    assert "[0xfd00000000, 0xffffffffff] (reserved)" in finding.found
    assert "msi" not in finding.found


def test_devices_and_numa_nodes(host):
    bdf = "0000:01:00.0"
    host.add(f"/sys/bus/pci/devices/{bdf}/numa_node", "1\n")
    host.add("/sys/devices/system/node/node0/meminfo")
    assert devices.device_nodes(host, [bdf], None) == []  # one node only
    host.add("/sys/devices/system/node/node1/meminfo")
    (finding,) = devices.device_nodes(host, [bdf], None)
    assert (finding.level, finding.found) == (
        WARNING, f"{bdf} is on node 1, guest RAM on any node",
    )  # fmt: skip
    assert "host_numa_node=1" in finding.advice
    assert devices.device_nodes(host, [bdf], 1)[0].level == OK
    assert devices.device_nodes(host, [bdf], 0)[0].level == WARNING
    host.add(f"/sys/bus/pci/devices/{bdf}/numa_node", "-1\n")
    assert devices.device_nodes(host, [bdf], None) == []


def test_iommu(host):
    assert vfio.iommu(host).level == WARNING
    host.add("/sys/kernel/iommu_groups/3/type").add("/sys/class/iommu/dmar0/x")
    assert vfio.iommu(host).found == "1 IOMMU groups (dmar0)"


HUGE = "/sys/kernel/mm/hugepages/hugepages-2048kB"


def huge(host, free, total, reserved):
    for name, value in (("free", free), ("nr", total), ("resv", reserved)):
        host.add(f"{HUGE}/{name}_hugepages", f"{value}\n")


def test_huge_pages(host):
    config = MemoryConfig(size=256 * MIB, hugepages=True)
    finding = preflight.memory(config, host)
    assert "this host offers none" in finding.found
    huge(host, 128, 130, 0)
    assert preflight.memory(config, host).level == OK
    huge(host, 128, 130, 8)  # eight of the free ones are promised to others
    finding = preflight.memory(config, host)
    assert "128 huge pages of 2048 KiB are needed, 120 are free" in finding.found
    assert finding.cure == (f"echo 138 >{HUGE}/nr_hugepages",)
    assert finding.code == 38


NODE_MEMINFO = """Node 1 MemTotal:       13723852 kB
Node 1 MemFree:         102400 kB
Node 1 Active(file):     51200 kB
Node 1 Inactive(file):   51200 kB
Node 1 SReclaimable:      1024 kB
"""


def test_memory_of_host_and_node(host):
    host.add("/proc/meminfo", "MemTotal:  9999999 kB\nMemFree:  1 kB\nMemAvailable:   204800 kB\n")
    host.add("/sys/devices/system/node/node1/meminfo", NODE_MEMINFO)
    host.add("/sys/devices/system/node/node1/hugepages/hugepages-2048kB/free_hugepages", "3\n")
    host.add("/sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages", "7\n")
    host.add("/sys/devices/system/node/possible", "0-1\n")
    assert preflight.memory(MemoryConfig(size=200 * MIB), host).level == OK
    finding = preflight.memory(MemoryConfig(size=201 * MIB), host)
    assert finding.level == PROBLEM
    assert "only 200M" in finding.found
    assert preflight.free_bytes(host, 1) == 201 * MIB
    assert preflight.memory(MemoryConfig(size=201 * MIB, host_numa_node=1), host).level == OK
    assert "on node 1" in preflight.memory(MemoryConfig(202 * MIB, host_numa_node=1), host).found
    assert "no such node" in preflight.memory(MemoryConfig(4 * MIB, host_numa_node=2), host).found
    (node,) = resources.memory_nodes(host)
    assert node.found == "node 1: 201M available; 3 of 7 huge pages of 2048kB free"


def test_groups_in_use(host, tmp_path):
    host.add("/dev/vfio/7").add("/dev/vfio/8")
    host.failing["/dev/vfio/8"] = 16
    (tmp_path / "proc/4242/fd").mkdir(parents=True)
    (tmp_path / "proc/4242/fd/9").symlink_to("/dev/vfio/8")
    (tmp_path / "proc/1/fd").mkdir(parents=True)
    asked = []

    def stop(pids):
        asked.append(pids)
        return ["stop it"], False

    free, busy, *none = devices.groups_in_use(host, [7, 8, 9], stop)
    assert not none
    assert free.level == OK
    assert (busy.level, busy.code, busy.cure) == (PROBLEM, 39, ("stop it",))
    assert asked == [[4242]]


@pytest.mark.parametrize(("cdev", "sizes"), [("", 2), ("/dev/vfio/devices/vfio3", 1)])
def test_locked_and_pinned_by_the_container_counts_twice(host, monkeypatch, cdev, sizes):
    device = SimpleNamespace(bdf="0000:01:00.0", group=7, cdev=cdev)
    monkeypatch.setattr(pci, "look_up_devices", lambda specs, host: ([device], []))
    monkeypatch.setattr(pci, "bar_bytes", lambda bdf, host: 0)
    limited(host, 8 * MIB)
    ram = MemoryConfig(size=256 * MIB, mlock=True)
    findings = preflight.devices([], ram, host)
    (found,) = [finding for finding in findings if finding.name == "memlock"]
    assert f"{256 * sizes} MiB" in found.found
