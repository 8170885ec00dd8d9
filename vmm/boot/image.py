"""What a kernel file comes down to: where its bytes go and where the guest starts."""

from __future__ import annotations

import os

from vmm.errors import GuestError
from vmm.layout import HIGH_RAM_GPA
from vmm.light.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmm._native.memory.guestmem import GuestMemory

PVH = "pvh"
BZIMAGE = "bzimage"
ENTRY_MAX = 1 << 32


class Segment(Record):
    """``file_size`` bytes at ``offset`` of the file go to ``gpa``; the guest gets ``memory_size``.

    What lies between the two sizes is zero because guest RAM is fresh at every boot.
    """

    __slots__ = ("file_size", "gpa", "memory_size", "offset")
    offset: int
    file_size: int
    gpa: int
    memory_size: int

    def __init__(self, offset: int, file_size: int, gpa: int, memory_size: int) -> None:
        self._set(offset=offset, file_size=file_size, gpa=gpa, memory_size=memory_size)


class LoadPlan(Record):
    """Format (PVH or BZIMAGE), 32-bit entry address, segments, and Linux's setup header.

    ``setup_header`` is empty for PVH; for a bzImage it is the header from offset 0x1f1 on.
    """

    __slots__ = ("entry", "kind", "segments", "setup_header")
    kind: str
    entry: int
    segments: tuple[Segment, ...]
    setup_header: bytes

    def __init__(
        self, kind: str, entry: int, segments: tuple[Segment, ...], setup_header: bytes = b""
    ) -> None:
        self._set(kind=kind, entry=entry, segments=segments, setup_header=setup_header)

    @property
    def end(self) -> int:
        """First gpa behind everything that is loaded."""
        return max(s.gpa + s.memory_size for s in self.segments)


def check_plan(plan: LoadPlan, path: str, file_size: int) -> None:
    """Refuse a plan that reads outside the file or starts outside what it loads."""
    if not plan.segments:
        raise GuestError(f"{path}: nothing in it is to be loaded", "use a complete kernel image")
    for segment in plan.segments:
        if segment.offset + segment.file_size > file_size:
            raise GuestError(
                f"{path}: cut short: a segment ends at byte {segment.offset + segment.file_size} "
                f"of the file, which has {file_size}",
                "copy the file again",
            )
        if segment.memory_size < segment.file_size or segment.gpa < HIGH_RAM_GPA:
            raise GuestError(
                f"{path}: a segment of {segment.file_size} bytes for {segment.gpa:#x} cannot be "
                f"loaded: kernels go to {HIGH_RAM_GPA:#x} and above",
                "use a kernel or firmware linked for 1 MiB or higher",
            )
    inside = [s for s in plan.segments if s.gpa <= plan.entry < s.gpa + s.memory_size]
    if not inside or plan.entry >= ENTRY_MAX:
        raise GuestError(
            f"{path}: its entry {plan.entry:#x} lies in nothing that it loads",
            "use a complete kernel image",
        )


def load_segments(plan: LoadPlan, path: str, fd: int, memory: GuestMemory) -> None:
    """Read every segment straight into guest RAM; GuestError when one does not fit."""
    for segment in plan.segments:
        if not segment.memory_size:
            continue
        try:
            view = memory.view(segment.gpa, segment.memory_size)
        except ValueError:
            raise GuestError(
                f"{path}: needs RAM at [{segment.gpa:#x}, "
                f"{segment.gpa + segment.memory_size:#x}); the guest has {memory.describe()}",
                "raise size in VLLMD_HYPERVISOR_MEMORY_CONFIG",
            ) from None
        read_exactly(fd, view[: segment.file_size], segment.offset, path)


def read_exactly(fd: int, view: memoryview, offset: int, path: str) -> None:
    """Fill ``view`` from the file; GuestError when the file ends before."""
    done = 0
    while done < len(view):
        got = os.preadv(fd, [view[done:]], offset + done)
        if got == 0:
            raise GuestError(f"{path}: ended at byte {offset + done}", "copy the file again")
        done += got
