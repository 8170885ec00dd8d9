"""From a kernel file to a loaded guest: recognise, plan, load, describe."""

from __future__ import annotations

import os

from vmm.boot import plancache
from vmm.boot.bzimage import cmdline_limit, initrd_limit, is_bzimage, plan_bzimage
from vmm.boot.image import (
    BZIMAGE,
    MULTIBOOT,
    LoadPlan,
    check_fits,
    check_plan,
    kernel_error,
    load_segments,
    read_exactly,
)
from vmm.boot.params import write_pvh, write_zero_page
from vmm.errors import HOST_LACKS, SETTING_PREFIX, GuestError
from vmm.layout import (
    CMDLINE_GPA,
    CMDLINE_MAX,
    EBDA_POINTER_GPA,
    HIGH_RAM_GPA,
    LOW_RAM_END,
    PAGE_SIZE,
    memory_map,
    ram_regions,
)
from vmm.log.hub import get_logger

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmm._native.memory.guestmem import GuestMemory

log = get_logger(__name__)

HEAD_BYTES = 4096
ACCEPTED = (
    "accepted: a bzImage (vmlinuz), or an ELF kernel or firmware with a PVH entry or a Multiboot "
    "header"
)
# First bytes of files that people give by mistake, with what they are.
KNOWN_FILES = (
    (b"\x1f\x8b", "gzip data; gunzip it first"),
    (b"\xfd7zXZ\x00", "xz data; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "zstd data; unpack it first"),
    (b"QFI\xfb", "a qcow2 disk image"),
    (b"070701", "a cpio archive (an initramfs?)"),
    (b"#!", "a script"),
    (b"MZ", "an EFI program or PE file without Linux's setup header"),
)


def open_plan(path: str, cache_directory: str | None, opened: int = -1) -> tuple[int, LoadPlan]:
    """Open the kernel and plan its loading: (fd, plan). The caller closes the fd.

    ``opened``: the file, where it is open already; it stays so.
    """
    try:
        fd = _open(path, opened)
    except OSError as error:
        if error.errno in HOST_LACKS:
            raise
        raise kernel_error(
            path, f"cannot open it: {error.strerror}", "give a readable kernel or firmware file"
        ) from error
    try:
        stat = os.fstat(fd)
        plan = plancache.recall(stat)
        if plan is None and cache_directory:
            plan = plancache.load(cache_directory, stat)
        if plan is None:
            plan = make_plan(fd, path, stat.st_size)
            if plan.kind != BZIMAGE:
                plancache.remember(stat, plan)
                if cache_directory:
                    plancache.store(cache_directory, stat, plan)
        check_plan(plan, path, stat.st_size)
    except BaseException:
        os.close(fd)
        raise
    return fd, plan


def _open(path: str, opened: int) -> int:
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC) if opened < 0 else os.dup(opened)


def make_plan(fd: int, path: str, size: int) -> LoadPlan:
    """Recognise the file by its content; GuestError says what was found and what is accepted."""
    head = os.pread(fd, HEAD_BYTES, 0)
    if head[:4] == b"\x7fELF":
        from vmm.boot.elf import plan_elf

        with os.fdopen(os.dup(fd), "rb") as stream:
            return plan_elf(stream, path, size)
    if is_bzimage(head):
        return plan_bzimage(head, size, path)
    raise kernel_error(path, f"not a kernel: {describe(head)}", ACCEPTED)


def describe(head: bytes) -> str:
    """What the first bytes of a file look like."""
    if not head:
        return "the file is empty"
    for magic, what in KNOWN_FILES:
        if head.startswith(magic):
            return f"it is {what}"
    return f"it starts with the bytes {head[:8].hex(' ')}"


def check_payload(plan: LoadPlan, path: str, cmdline: str, initramfs: str | None, ram: int) -> None:
    """GuestError when this kernel cannot be started with all that in so many bytes of RAM.

    What load_guest() would meet, known before anything is built; `check` asks it as well.
    """
    limit = min(cmdline_limit(plan), CMDLINE_MAX - 1)
    if len(cmdline) > limit:
        raise GuestError(
            f"{SETTING_PREFIX}CMDLINE has {len(cmdline)} characters; {path} takes {limit}",
            "shorten it",
        )
    regions = ram_regions(ram)
    check_fits(plan, path, regions)
    if initramfs:
        try:
            size = os.stat(initramfs).st_size
        except OSError as error:
            raise initramfs_error(initramfs, f"cannot open it: {error.strerror}") from error
        place_initramfs(plan, initramfs, size, regions[0][1])


def load_guest(
    plan: LoadPlan,
    fd: int,
    path: str,
    memory: GuestMemory,
    initramfs: str | None,
    cmdline: str,
    initramfs_fd: int = -1,
) -> None:
    """Put kernel, initramfs, command line and boot parameters into guest RAM.

    ``initramfs_fd``: the file, where it is open already; it stays so.
    """
    load_segments(plan, path, fd, memory)
    # Firmware and kernels look up the RSDP through this word of the BIOS data area.
    memory.write(EBDA_POINTER_GPA, (LOW_RAM_END >> 4).to_bytes(2, "little"))
    memory.write(CMDLINE_GPA, cmdline.encode("ascii") + b"\0")
    initrd = load_initramfs(plan, memory, initramfs, initramfs_fd) if initramfs else None
    if log.debugging:
        places = ", ".join([f"[{s.gpa:#x}, {s.gpa + s.memory_size:#x})" for s in plan.segments])
        log.debug(
            f"kernel: {plan.kind}, entry {plan.entry:#x}, loaded to {places}; initramfs (gpa, "
            f"size): {initrd}; command line: {len(cmdline)} of {cmdline_limit(plan)} characters"
        )
    guest_map = memory_map(memory.regions)
    if plan.kind == BZIMAGE:
        write_zero_page(memory, plan.setup_header, guest_map, initrd)
    elif plan.kind == MULTIBOOT:
        from vmm.boot.multiboot import write_multiboot

        write_multiboot(memory, guest_map, initrd)
    else:
        write_pvh(memory, guest_map, initrd)


def load_initramfs(
    plan: LoadPlan, memory: GuestMemory, path: str, opened: int = -1
) -> tuple[int, int]:
    """Load the initramfs as high as it goes in the first region; (gpa, size)."""
    try:
        fd = _open(path, opened)
    except OSError as error:
        if error.errno in HOST_LACKS:
            raise
        raise initramfs_error(path, f"cannot open it: {error.strerror}") from error
    try:
        size = os.fstat(fd).st_size
        gpa = place_initramfs(plan, path, size, memory.regions[0][1])
        read_exactly(fd, memory.view(gpa, size), 0, path)
        return gpa, size
    finally:
        os.close(fd)


def place_initramfs(plan: LoadPlan, path: str, size: int, ram_end: int) -> int:
    """Where ``size`` bytes go: below the kernel's limit and ``ram_end``, beside what is loaded."""
    if size == 0:
        raise initramfs_error(path, "the file is empty")
    limit = initrd_limit(plan) if plan.kind == BZIMAGE else ram_end
    top = min(ram_end, limit)
    gpa = (top - size) & ~(PAGE_SIZE - 1)
    # Behind all that begins below the limit; such a limit may lie below the kernel itself.
    floor = max([s.gpa + s.memory_size for s in plan.segments if s.gpa < top], default=HIGH_RAM_GPA)
    if gpa >= floor:
        return gpa
    problem = f"its {size} bytes do not fit between {floor:#x} and {top:#x}"
    if limit < ram_end:
        raise initramfs_error(
            path, f"{problem}; the kernel takes none above {limit:#x} (initrd_addr_max)",
            "use a smaller initramfs or a newer kernel",
        )  # fmt: skip
    raise initramfs_error(path, problem, "raise size in VLLMD_HYPERVISOR_MEMORY_CONFIG")


def initramfs_error(
    path: str, problem: str, remedy: str = "give a complete file that can be read, or unset it"
) -> GuestError:
    """The error about an initramfs, which begins with the variable that names it."""
    return GuestError(f"{SETTING_PREFIX}INITRAMFS_FILEPATH={path}: {problem}", remedy)
