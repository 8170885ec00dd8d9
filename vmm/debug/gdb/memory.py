"""A guest's memory by the addresses that gdb uses: those of one vCPU, or physical ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm.debug.cpu import Cpu
    from vmm.debug.ram import Ram

PAGE = 4096
ADDRESS_MASK = (1 << 64) - 1


class NoMemory(ValueError):
    """There is none at this address: not mapped, or not RAM."""


def read(ram: Ram, cpu: Cpu | None, address: int, length: int) -> bytes:
    """Up to ``length`` bytes, as far as there are any; NoMemory when there is not even one."""
    parts: list[bytes] = []
    try:
        for gpa, size in _spans(cpu, address, length):
            parts.append(ram.read(gpa, size))
    except ValueError as error:
        if not parts:
            raise NoMemory(f"no memory at {address:#x}") from error
    return b"".join(parts)


def write(ram: Ram, cpu: Cpu | None, address: int, data: bytes) -> None:
    """All of it or, with NoMemory, nothing."""
    spans = list(_spans(cpu, address, len(data)))
    try:
        for gpa, size in spans:
            ram.read(gpa, size)
    except ValueError as error:
        raise NoMemory(f"no memory at {address:#x}") from error
    for gpa, size in spans:
        ram.write(gpa, data[:size])
        data = data[size:]


def translate(cpu: Cpu, address: int) -> int | None:
    """The gpa behind a linear address of this vCPU; None when it is not mapped."""
    return cpu.vcpu.fd.translate(address & ADDRESS_MASK)


def _spans(cpu: Cpu | None, address: int, length: int) -> Iterator[tuple[int, int]]:
    """(gpa, size) page by page; without a vCPU the address is one already."""
    while length > 0:
        address &= ADDRESS_MASK
        size = min(PAGE - address % PAGE, length)
        gpa = address if cpu is None else translate(cpu, address)
        if gpa is None:
            raise NoMemory(f"{address:#x} is not mapped")
        yield gpa, size
        address += size
        length -= size
