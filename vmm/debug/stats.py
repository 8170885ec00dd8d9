"""What the kernel counted for a VM and its vCPUs: also the exits that it handled itself.

`exits`, `halt_exits`, `irq_injections`, page faults and flushes, by the names of this kernel's KVM.
Source: Documentation/virt/kvm/api.rst, 4.133 (KVM_GET_STATS_FD).
"""

from __future__ import annotations

import os
import struct
from html import escape
from typing import TYPE_CHECKING

from vmm.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.machine import Machine

# struct kvm_stats_header, and kvm_stats_desc without its name.
HEADER = struct.Struct("<IIIIII")
DESCRIPTOR = struct.Struct("<IhHII")
# More than any kernel has: what it says is believed, but not for ever.
DESCRIPTORS_MAX = 4096

Value = int | list[int]


def read_file(fd: int) -> dict[str, Value]:
    """What a statistics descriptor holds now: numbers, and histograms as lists, by their names.

    As the kernel gives them: a name says its unit where it has one (``halt_wait_ns``).
    """
    _, name_size, count, _, at, data_at = HEADER.unpack(os.pread(fd, HEADER.size, 0))
    if count > DESCRIPTORS_MAX:
        raise HostError(f"KVM tells of {count} statistics: at most {DESCRIPTORS_MAX} are read")
    size = DESCRIPTOR.size + name_size
    table = os.pread(fd, count * size, at)
    entries = [_entry(table[n : n + size]) for n in range(0, len(table), size)]
    data = os.pread(fd, max([end for _, _, end in entries] or [0]), data_at)
    found: dict[str, Value] = {}
    for name, begin, end in entries:
        numbers = list(struct.unpack(f"<{(end - begin) // 8}Q", data[begin:end]))
        found[name] = numbers[0] if len(numbers) == 1 else numbers
    return found


def _entry(raw: bytes) -> tuple[str, int, int]:
    """(name, first byte, end) of one statistic among the data."""
    _, _, numbers, offset, _ = DESCRIPTOR.unpack_from(raw)
    name = raw[DESCRIPTOR.size :].partition(b"\0")[0].decode("ascii", "replace")
    return name, offset, offset + 8 * max(numbers, 1)


class Stats:
    """The VM's statistics and those of each vCPU, as they were when asked.

    ``vm`` and ``vcpus[i]`` are dicts by the kernel's names; ``total`` adds the vCPUs up.
    """

    def __init__(self, vm: dict[str, Value], vcpus: list[dict[str, Value]]) -> None:
        self.vm = vm
        self.vcpus = vcpus

    @property
    def total(self) -> dict[str, int]:
        """Each number of the vCPUs', added up; histograms are left out."""
        sums: dict[str, int] = {}
        for vcpu in self.vcpus:
            for name, value in vcpu.items():
                if not isinstance(value, list):
                    sums[name] = sums.get(name, 0) + value
        return sums

    def __sub__(self, earlier: Stats) -> Stats:
        """What was counted since ``earlier``."""
        pairs = zip(self.vcpus, earlier.vcpus, strict=True)
        return Stats(_less(self.vm, earlier.vm), [_less(new, old) for new, old in pairs])

    def _lines(self) -> list[tuple[str, str]]:
        vm = [(f"vm {name}", value) for name, value in self.vm.items()]
        both = [*vm, *self.total.items()]
        return [
            (name, f"{value:,}") for name, value in both if not isinstance(value, list) and value
        ]

    def __str__(self) -> str:
        lines = self._lines()
        width = max([len(name) for name, _ in lines] or [0])
        head = f"KVM's statistics of {len(self.vcpus)} vCPUs (what is 0 is not shown)"
        return "\n".join([head, *[f"{name.ljust(width)}  {value:>16}" for name, value in lines]])

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        rows = [f"<tr><td>{escape(n)}</td><td>{escape(v)}</td></tr>" for n, v in self._lines()]
        return f"<table>{''.join(rows)}</table>"


def _less(new: dict[str, Value], old: dict[str, Value]) -> dict[str, Value]:
    out: dict[str, Value] = {}
    for name, value in new.items():
        before = old.get(name, 0)
        if isinstance(value, list) and isinstance(before, list):
            out[name] = [a - b for a, b in zip(value, before, strict=True)]
        elif not isinstance(value, list) and not isinstance(before, list):
            out[name] = value - before
    return out


def read_stats(machine: Machine) -> Stats:
    """KVM's statistics of ``machine`` now. Any Python thread, while the guest runs."""
    fds: list[Callable[[], int]] = [machine.vm.fd.get_stats_fd]
    fds += [vcpu.fd.get_stats_fd for vcpu in machine.vcpus]
    found = []
    for get in fds:
        fd = _open(get)
        try:
            found.append(read_file(fd))
        finally:
            os.close(fd)
    return Stats(found[0], found[1:])


def _open(get: Callable[[], int]) -> int:
    try:
        return get()
    except OSError as error:
        raise HostError(
            f"this KVM gives no statistics: {error}", "use Linux 5.14 or newer"
        ) from None
