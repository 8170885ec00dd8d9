"""`queues=` of a disk: what the guest is offered, also after a snapshot's way through a file."""

from __future__ import annotations

import struct

import pytest

from tests.support.elf_builder import build_elf
from tests.support.tiny_machine import TinyMachine
from vmm.debug.guest import Guest
from vmm.machine import Machine

MIB = 1 << 20
NUM_QUEUES = 0x22
F_MQ = 1 << 12
HALT = b"\xf4"


def offered(machine: Machine) -> list[int]:
    """num_queues of each disk's configuration, which is what its status says too."""
    found = []
    for function in machine.virtio[1:-1]:
        device = function.device
        (count,) = struct.unpack("<H", device.read_config(NUM_QUEUES, 2).to_bytes(2, "little"))
        assert count == len(device.queue_sizes) == function.status()["queues"]
        assert bool(device.features & F_MQ) == (count > 1)
        found.append(count)
    return found


@pytest.mark.parametrize(("cpus", "counts"), [(1, [1, 1]), (2, [2, 2]), (6, [5, 4])])
def test_as_many_as_said_and_none_without_a_vcpu(tmp_path, cpus, counts):
    image = tmp_path / "many.img"
    image.write_bytes(bytes(MIB))
    with TinyMachine(
        tmp_path, HALT, CPU_COUNT=cpus, SYSTEM_IMAGE_FILEPATH=f"{image},queues=5"
    ) as tiny:
        assert offered(tiny.machine) == counts


def test_a_snapshot_keeps_them(tmp_path):
    kernel, image = tmp_path / "guest.elf", tmp_path / "disk.img"
    kernel.write_bytes(build_elf(HALT))
    image.write_bytes(bytes(MIB))
    file = tmp_path / "saved"
    settings = {"kernel": kernel, "memory": "8M", "cpu_count": 2}
    with Guest(**settings, system_image=f"{image},queues=1") as guest:
        assert offered(guest.machine) == [1]
        saved = guest.snapshot()
        saved.save(file)
        with saved.fork() as fork:
            assert offered(fork.machine) == [1]
    with Guest.load(file) as again:
        assert offered(again.machine) == [1]
