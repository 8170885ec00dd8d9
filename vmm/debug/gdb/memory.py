"""A guest's memory by the addresses that gdb uses: those of one vCPU, or physical ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm.debug.ram import by_page

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmm.debug.cpu import Cpu
    from vmm.debug.ram import Ram


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
    try:
        spans = list(_spans(cpu, address, len(data)))
        for gpa, size in spans:
            ram.read(gpa, size)
    except ValueError as error:
        raise NoMemory(f"no memory at {address:#x}") from error
    for gpa, size in spans:
        ram.write(gpa, data[:size])
        data = data[size:]


def _spans(cpu: Cpu | None, address: int, length: int) -> Iterable[tuple[int, int]]:
    """(gpa, size) page by page; without a vCPU the address is one already."""
    return by_page(address, length) if cpu is None else cpu.pages(address, length)
