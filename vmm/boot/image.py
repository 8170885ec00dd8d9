"""What a kernel file comes down to: where its bytes go and where the guest starts."""

from __future__ import annotations

import os

from vmm.errors import SETTING_PREFIX, GuestError
from vmm.layout import HIGH_RAM_GPA, PHYS_BITS_MAX
from vmm.light.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmm._native.memory.guestmem import GuestMemory

PVH = "pvh"
BZIMAGE = "bzimage"
MULTIBOOT = "multiboot"
ENTRY_MAX = 1 << 32
# Linux for x86 takes so much where it says nothing of it (COMMAND_LINE_SIZE with its NUL is 2048).
CMDLINE_USUAL = 2047


def kernel_error(path: str, problem: str, remedy: str) -> GuestError:
    """The error about a kernel file, which begins with the variable that names the file."""
    return GuestError(f"{SETTING_PREFIX}KERNEL_FILEPATH={path}: {problem}", remedy)


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
    """Format (PVH, BZIMAGE or MULTIBOOT), 32-bit entry address, segments, and Linux's setup header.

    ``setup_header`` is empty for the others; for a bzImage it is the header from offset 0x1f1 on.
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

    @property
    def start(self) -> int:
        """First gpa of everything that is loaded."""
        return min(s.gpa for s in self.segments)


def check_plan(plan: LoadPlan, path: str, file_size: int) -> None:
    """Refuse a plan that reads outside the file or starts outside what it loads."""
    if not plan.segments:
        raise kernel_error(path, "nothing in it is to be loaded", "use a complete kernel image")
    for segment in plan.segments:
        _check_segment(segment, path, file_size)
    _check_overlap(plan, path)
    inside = [s for s in plan.segments if s.gpa <= plan.entry < s.gpa + s.memory_size]
    if not inside or plan.entry >= ENTRY_MAX:
        raise kernel_error(
            path, f"its entry {plan.entry:#x} lies in nothing that it loads",
            "use a complete kernel image",
        )  # fmt: skip


def _check_segment(segment: Segment, path: str, file_size: int) -> None:
    if segment.offset + segment.file_size > file_size:
        raise kernel_error(
            path,
            f"cut short: a segment ends at byte {segment.offset + segment.file_size} of the file, "
            f"which has {file_size}",
            "copy the file again",
        )
    if segment.memory_size < segment.file_size or segment.gpa < HIGH_RAM_GPA:
        raise kernel_error(
            path,
            f"a segment of {segment.file_size} bytes for {segment.gpa:#x} cannot be loaded: "
            f"kernels go to {HIGH_RAM_GPA:#x} and above",
            "use a kernel or firmware linked for 1 MiB or higher",
        )
    end = segment.gpa + segment.memory_size
    if end > 1 << PHYS_BITS_MAX:
        raise kernel_error(
            path,
            f"a segment reaches to {end:#x}; a guest's addresses have {PHYS_BITS_MAX} bits",
            "copy or build the file again",
        )


def _check_overlap(plan: LoadPlan, path: str) -> None:
    """What is loaded twice depends on the order; a linker makes no such file."""
    end = 0
    for segment in sorted(plan.segments, key=lambda segment: segment.gpa):
        if segment.gpa < end:
            raise kernel_error(
                path,
                f"its segments overlap: one begins at {segment.gpa:#x}, below {end:#x}, where "
                "another ends",
                "copy or build the file again",
            )
        end = segment.gpa + segment.memory_size


def check_fits(plan: LoadPlan, path: str, regions: list[tuple[int, int]]) -> None:
    """GuestError when a segment lies outside guest RAM, which is (gpa, size) of each region."""
    for segment in plan.segments:
        end = segment.gpa + segment.memory_size
        if not any(gpa <= segment.gpa and end <= gpa + size for gpa, size in regions):
            raise does_not_fit(segment, path, regions)


def does_not_fit(segment: Segment, path: str, regions: list[tuple[int, int]]) -> GuestError:
    """The error for a segment that guest RAM has no place for."""
    ram = ", ".join([f"[{gpa:#x}, {gpa + size:#x})" for gpa, size in regions])
    return kernel_error(
        path,
        f"needs RAM at [{segment.gpa:#x}, {segment.gpa + segment.memory_size:#x}); the guest has "
        f"{ram}",
        "raise size in VLLMD_HYPERVISOR_MEMORY_CONFIG",
    )


def load_segments(plan: LoadPlan, path: str, fd: int, memory: GuestMemory) -> None:
    """Read every segment straight into guest RAM; GuestError when one does not fit."""
    check_fits(plan, path, memory.regions)
    for segment in plan.segments:
        if segment.file_size:
            view = memory.view(segment.gpa, segment.file_size)
            read_exactly(fd, view, segment.offset, path)


def read_exactly(fd: int, view: memoryview, offset: int, path: str) -> None:
    """Fill ``view`` from the file; GuestError when the file ends before."""
    done = 0
    while done < len(view):
        got = os.preadv(fd, [view[done:]], offset + done)
        if got == 0:
            raise GuestError(f"{path} ended at byte {offset + done}", "copy the file again")
        done += got
