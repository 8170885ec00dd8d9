"""Both kinds of IOMMU domain over fake files: the order of things, and what failures leave."""

from __future__ import annotations

import errno
from types import SimpleNamespace

import pytest

from devices.vfio import attach, dma
from devices.vfio.domain import open_domain
from vmm._native.vfio import ioctls as vfio
from vmm.errors import BusyError, HostError
from vmm.host.pci import HostDevice

MIB = 1 << 20
CDEV = "/dev/vfio/devices/vfio3"
BY_GROUP = HostDevice("0000:01:00.0", 10, "vfio-pci")
BY_CDEV = HostDevice("0000:01:00.0", 10, "vfio-pci", CDEV)
# A hole below 4 GiB, as the guest has one.
MEMORY = SimpleNamespace(
    size=20 * MIB,
    slots=[(0, 12 * MIB, 0x7F0000000000), (1 << 32, 8 * MIB, 0x7F1000000000)],
    regions=[(0, 12 * MIB), (1 << 32, 8 * MIB)],
)


class FakeKernel:
    """VFIO's files; every call is noted. ``fails``: call to (error, how many go well before)."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.fails: dict[str, tuple[int, int]] = {}
        self.ranges = [(0, (1 << 39) - 1)]
        self.fd = 10
        self.open = 0

    def call(self, name: str, *arguments: object) -> None:
        code, good = self.fails.get(name, (0, 0))
        if code and [call[0] for call in self.calls].count(name) >= good:
            raise OSError(code, name)
        self.calls.append((name, *arguments))

    def names(self) -> list[str]:
        return [str(call[0]) for call in self.calls]

    def file(self, name: str, **methods: object) -> SimpleNamespace:
        self.call(name)
        self.open += 1
        self.fd += 1
        made = SimpleNamespace(fd=self.fd, **methods)

        def close() -> None:
            if made.fd >= 0:
                self.open -= 1
                made.fd = -1
                self.calls.append((f"close {name}",))

        made.close = close
        return made

    def asks(self, name: str, value: object = None):
        def method(*arguments: object) -> object:
            self.call(name, *arguments)
            return value

        return method

    def container(self):
        return self.file(
            "container", get_api_version=lambda: vfio.API_VERSION, check_extension=lambda _: True,
            set_iommu=self.asks("set_iommu"), iova_ranges=lambda: self.ranges,
            map_dma=self.asks("map"), unmap_dma=self.asks("unmap"),
        )  # fmt: skip

    def group(self, path: str):
        return self.file(
            "group", get_status=lambda: vfio.VIABLE, set_container=self.asks("set_container"),
            unset_container=self.asks("unset_container"),
            get_device_fd=lambda bdf: self.file("device"),
        )  # fmt: skip

    def iommufd(self):
        return self.file(
            "iommufd", ioas_alloc=lambda: 7, ioas_iova_ranges=lambda ioas: self.ranges,
            ioas_map=lambda ioas, *rest: self.call("map", *rest),
            ioas_unmap=lambda ioas, *rest: self.call("unmap", *rest),
        )  # fmt: skip

    def cdev(self, path: str):
        assert path == CDEV
        return self.file("device", bind_iommufd=self.asks("bind"), attach_iommufd_pt=self.attach)

    def attach(self, ioas: int) -> None:
        assert ioas == 7
        self.call("attach")


class FakeKvm:
    """KVM's VFIO device."""

    def __init__(self, kernel: FakeKernel) -> None:
        self.kernel = kernel
        self.told: set[int] = set()

    def add_group(self, fd: int) -> None:
        self.kernel.call("kvm add")
        self.told.add(fd)

    def del_group(self, fd: int) -> None:
        self.told.remove(fd)

    def close(self) -> None:
        self.told.clear()


@pytest.fixture
def kernel():
    return FakeKernel()


@pytest.fixture
def kvm(kernel):
    return FakeKvm(kernel)


@pytest.fixture(params=[BY_GROUP, BY_CDEV], ids=["type1v2", "iommufd"])
def host(request):
    return request.param


def test_ram_is_mapped_where_the_guest_sees_it(kernel, kvm, host, monkeypatch):
    monkeypatch.setattr(dma, "CHUNK_BYTES", 8 * MIB)
    domain = open_domain(kvm, kernel, [host])
    assert domain.backend == ("iommufd" if host.cdev else "type1v2")
    device = domain.open_device(host, MEMORY)
    assert [call[1:] for call in kernel.calls if call[0] == "map"] == [
        (0x7F0000000000, 0, 8 * MIB),
        (0x7F0000000000 + 8 * MIB, 8 * MIB, 4 * MIB),
        (0x7F1000000000, 1 << 32, 8 * MIB),
    ]
    device.close()
    domain.close()
    domain.close()
    assert (kernel.open, kvm.told) == (0, set())


def test_the_order_with_iommufd(kernel, kvm):
    """KVM before the bind; attached before RAM is mapped, so that each chunk is pinned."""
    domain = open_domain(kvm, kernel, [BY_CDEV])
    first = domain.open_device(BY_CDEV, MEMORY)
    steps = ["iommufd", "device", "kvm add", "bind", "attach"]
    assert kernel.names() == [*steps, "map", "map"]
    second = domain.open_device(BY_CDEV, MEMORY)
    assert kernel.names() == [*steps, "map", "map", *steps[1:]]  # RAM once
    first.close()
    second.close()
    domain.close()


def test_the_third_chunk_fails(kernel, kvm, host, monkeypatch):
    monkeypatch.setattr(dma, "CHUNK_BYTES", 4 * MIB)
    kernel.fails["map"] = (errno.ENOMEM, 2)
    domain = open_domain(kvm, kernel, [host])
    with pytest.raises(HostError, match=r"\[0x800000, 0xc00000\).*20971520 bytes.*LimitMEMLOCK="):
        domain.open_device(host, MEMORY)
    domain.close()
    assert (kernel.open, kvm.told) == (0, set())


@pytest.mark.parametrize("step", ["iommufd", "device", "kvm add", "bind", "attach", "map"])
def test_nothing_is_left_when_a_step_fails(kernel, kvm, step):
    kernel.fails[step] = (errno.EIO, 0)
    domain = open_domain(kvm, kernel, [BY_CDEV])
    with pytest.raises((HostError, OSError)):
        domain.open_device(BY_CDEV, MEMORY)
    assert kvm.told == set()
    domain.close()
    assert kernel.open == 0


@pytest.mark.parametrize(
    ("step", "code", "kind", "words"),
    [
        ("iommufd", errno.EACCES, HostError, "chown USER /dev/iommu"),
        ("device", errno.EACCES, HostError, f"chown USER {CDEV}"),
        ("bind", errno.EINVAL, BusyError, "in use by another process"),
        ("bind", errno.EBUSY, BusyError, "in use by another process"),
        ("bind", errno.EPERM, HostError, "allow_unsafe_interrupts"),
        ("attach", errno.EADDRINUSE, HostError, "reserved_regions"),
        ("map", errno.ENOMEM, HostError, "this user's processes"),
    ],
)
def test_what_iommufd_s_failures_say(kernel, kvm, step, code, kind, words):
    kernel.fails[step] = (code, 0)
    domain = open_domain(kvm, kernel, [BY_CDEV])
    with pytest.raises(kind, match=words):
        domain.open_device(BY_CDEV, MEMORY)
    domain.close()


def test_ram_outside_of_the_iommu_s_reach(kernel, kvm, host):
    kernel.ranges = [(0, 0xFEDFFFFF)]
    domain = open_domain(kvm, kernel, [host])
    with pytest.raises(HostError, match=r"\[0x100000000, 0x100800000\).*\[0x0, 0xfedfffff\]"):
        domain.open_device(host, MEMORY)
    assert "map" not in kernel.names()
    domain.close()


def test_device_memory(kernel, kvm, host):
    domain = open_domain(kvm, kernel, [host])
    domain.open_device(host, MEMORY).close()
    domain.map_device_memory(0x1000, 1 << 38, MIB)
    assert kernel.calls[-1] == ("map", 0x1000, 1 << 38, MIB)
    domain.unmap_device_memory(1 << 38, MIB)
    with pytest.raises(OSError, match="this host's IOMMU can map"):
        domain.map_device_memory(0x1000, 1 << 40, MIB)
    kernel.fails["map"] = (errno.EFAULT, 0)
    with pytest.raises(OSError, match="no device memory by its address" if host.cdev else "map"):
        domain.map_device_memory(0x1000, 1 << 38, MIB)
    domain.close()
    domain.unmap_device_memory(1 << 38, MIB)


def test_a_device_that_fails_in_its_last_step_is_told_with_words(monkeypatch):
    device = SimpleNamespace()
    domain = SimpleNamespace(open_device=lambda *rest: device, ranges=[], backend="group")
    monkeypatch.setattr(attach, "open_domain", lambda *rest: domain)

    def enable() -> None:
        raise OSError(errno.EIO, "gone")

    function = SimpleNamespace(bars=[], enable=enable)
    monkeypatch.setattr(attach, "PassthroughFunction", lambda *rest: function)
    nothing = SimpleNamespace(add=lambda *rest: None, place_passthrough=lambda *rest: None)
    made = attach.Passthrough(None, None, None, MEMORY, nothing, nothing)
    with pytest.raises(HostError, match="0000:01:00.0 fails: .*gone"):
        made.attach([BY_GROUP], None, "off", 3, lambda *rest: None)
    assert made.functions == [function]
