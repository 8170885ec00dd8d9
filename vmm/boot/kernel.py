"""From a kernel file to a loaded guest: recognise, plan, load, describe."""

from __future__ import annotations

import os

from vmm.boot import plancache
from vmm.boot.bzimage import initrd_limit, is_bzimage, plan_bzimage
from vmm.boot.image import BZIMAGE, LoadPlan, check_plan, load_segments, read_exactly
from vmm.boot.params import write_pvh, write_zero_page
from vmm.errors import GuestError
from vmm.layout import CMDLINE_GPA, EBDA_POINTER_GPA, LOW_RAM_END, PAGE_SIZE, memory_map

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmm._native.memory.guestmem import GuestMemory

HEAD_BYTES = 4096
ACCEPTED = "accepted: a bzImage (vmlinuz), or an ELF kernel or firmware with a PVH entry"
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


def open_plan(path: str, cache_directory: str | None) -> tuple[int, LoadPlan]:
    """Open the kernel and plan its loading: (fd, plan). The caller closes the fd."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise GuestError(
            f"cannot open the kernel {path}: {error.strerror}",
            "set VLLMD_HYPERVISOR_KERNEL_FILEPATH to a readable kernel or firmware file",
        ) from error
    try:
        stat = os.fstat(fd)
        plan = plancache.load(cache_directory, stat) if cache_directory else None
        if plan is None:
            plan = make_plan(fd, path, stat.st_size)
            if cache_directory and plan.kind != BZIMAGE:
                plancache.store(cache_directory, stat, plan)
        check_plan(plan, path, stat.st_size)
    except BaseException:
        os.close(fd)
        raise
    return fd, plan


def make_plan(fd: int, path: str, size: int) -> LoadPlan:
    """Recognise the file by its content; GuestError says what was found and what is accepted."""
    head = os.pread(fd, HEAD_BYTES, 0)
    if head[:4] == b"\x7fELF":
        from vmm.boot.elf import plan_elf

        with os.fdopen(os.dup(fd), "rb") as stream:
            return plan_elf(stream, path)
    if is_bzimage(head):
        return plan_bzimage(head, size, path)
    raise GuestError(f"{path}: not a kernel: {describe(head)}", ACCEPTED)


def describe(head: bytes) -> str:
    """What the first bytes of a file look like."""
    if not head:
        return "the file is empty"
    for magic, what in KNOWN_FILES:
        if head.startswith(magic):
            return f"it is {what}"
    return f"it starts with the bytes {head[:8].hex(' ')}"


def load_guest(
    plan: LoadPlan, fd: int, path: str, memory: GuestMemory, initramfs: str | None, cmdline: str
) -> None:
    """Put kernel, initramfs, command line and boot parameters into guest RAM."""
    load_segments(plan, path, fd, memory)
    # Firmware and kernels look up the RSDP through this word of the BIOS data area.
    memory.write(EBDA_POINTER_GPA, (LOW_RAM_END >> 4).to_bytes(2, "little"))
    memory.write(CMDLINE_GPA, cmdline.encode("ascii") + b"\0")
    initrd = load_initramfs(plan, memory, initramfs) if initramfs else None
    guest_map = memory_map(memory.regions)
    if plan.kind == BZIMAGE:
        write_zero_page(memory, plan.setup_header, guest_map, initrd)
    else:
        write_pvh(memory, guest_map, initrd)


def load_initramfs(plan: LoadPlan, memory: GuestMemory, path: str) -> tuple[int, int]:
    """Load the initramfs as high as it goes in the first region; (gpa, size)."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise GuestError(
            f"cannot open the initramfs {path}: {error.strerror}",
            "set VLLMD_HYPERVISOR_INITRAMFS_FILEPATH to a readable file, or unset it",
        ) from error
    try:
        size = os.fstat(fd).st_size
        if size == 0:
            raise empty_initramfs(path)
        top = memory.regions[0][1]
        if plan.kind == BZIMAGE:
            top = min(top, initrd_limit(plan))
        gpa = (top - size) & ~(PAGE_SIZE - 1)
        kernel_end = max([s.gpa + s.memory_size for s in plan.segments if s.gpa < top])
        if gpa < kernel_end:
            raise GuestError(
                f"the initramfs {path} ({size} bytes) does not fit between the kernel's end "
                f"{kernel_end:#x} and {top:#x}",
                "raise size in VLLMD_HYPERVISOR_MEMORY_CONFIG",
            )
        read_exactly(fd, memory.view(gpa, size), 0, path)
        return gpa, size
    finally:
        os.close(fd)


def empty_initramfs(path: str) -> GuestError:
    """The error for an initramfs without content."""
    return GuestError(f"the initramfs {path} is empty", "give a complete file, or unset it")
