"""What is found in a guest's RAM from outside, held against what the guest says of itself."""

from __future__ import annotations

import functools

from elftools.elf.elffile import ELFFile

import vmm
from tests.lab.guests.guest_run import WORK, expect
from tests.lab.guests.seen_guest import NAMES
from tests.support.speed import patience
from vmm.guest import pagetables
from vmm.guest.backtrace import backtrace
from vmm.guest.coredump import write_core
from vmm.guest.pagetables import Paging
from vmm.guest.symbolat import symbol_at
from vmm.guest.symbols import Symbols, own_paging, running_slide
from vmm.guest.unpacking import unpacking_of
from vmm.guest.vmcoreinfo import find_vmcoreinfo

LINKED_TEXT = 0xFFFFFFFF81000000
# Every trace of a processor with nothing to do has these.
IDLE = {"do_idle", "cpu_startup_entry"}


def told(text: str, word: str) -> list[str]:
    """What the guest said behind ``guest: WORD``."""
    lines = text.replace("\r", "").splitlines()
    return [line.partition(f"guest: {word} ")[2] for line in lines if f"guest: {word} " in line]


class Seen:
    """A guest that sleeps, and how its first vCPU translates."""

    def __init__(self, guest: vmm.Guest) -> None:
        self.guest = guest
        guest.serial.expect("guest: ready", patience(240))
        self.memory = guest.machine.memory
        self.fd = guest.machine.vcpus[0].fd
        # In user space now and then: let it fall asleep.
        guest.run(seconds=patience(1))
        self.regs, self.sregs = self.fd.get_regs(), self.fd.get_sregs()
        self.paging = Paging.of(self.sregs)
        rows = [row.split() for row in told(guest.serial.text, "symbol")]
        self.truth = {name: int(address, 16) for address, _, name in rows}
        self.read = functools.partial(pagetables.read, self.memory, self.paging)
        self.symbols = Symbols.from_ram(self.memory, self.paging)


def sees_a_kernel(kernel: str, initramfs: str, kaslr: bool, whole: bool) -> None:
    """Symbols and frames of one guest; ``whole``: also by other ways, and a core of it."""
    cmdline = "console=ttyS0 quiet panic=-1" + ("" if kaslr else " nokaslr")
    with vmm.Guest(kernel=kernel, initramfs=initramfs, memory="256M", cmdline=cmdline) as guest:
        seen = Seen(guest)
        names_are_the_kernels_own(seen, kaslr)
        frames_of_an_idle_processor(seen)
        memory_by_virtual_address(seen)
        if whole:
            names_by_other_ways(seen, kernel)
            a_map_of_the_link_is_moved(seen)
            core_has_it_all(seen)


def names_are_the_kernels_own(seen: Seen, kaslr: bool) -> None:
    symbols = seen.symbols
    expect(len(seen.truth) == len(NAMES), f"the guest told {seen.truth}")
    found = {name: symbols.get(name) for name in NAMES}
    expect(found == seen.truth, f"{found}\n{seen.truth}")
    (count,) = told(seen.guest.serial.text, "symbols")
    expect(len(symbols) == int(count), f"{len(symbols)} of {count} symbols")
    expect(kaslr or seen.truth["_text"] == LINKED_TEXT, hex(seen.truth["_text"]))


def names_by_other_ways(seen: Seen, kernel: str) -> None:
    """Without page tables, which are then found; and as the boot watch asks."""
    symbols = Symbols.from_ram(seen.memory)
    expect(len(symbols) == len(seen.symbols), f"{symbols} without page tables")
    paging = own_paging(seen.memory, symbols)
    expect(paging is not None and len(paging.levels) == len(seen.paging.levels), str(paging))
    address = seen.truth["vfs_read"] + 0x10
    for place in (address, pagetables.translate(seen.memory, seen.paging, address)):
        name = symbol_at(kernel, place, seen.memory, paging)
        expect(name == "vfs_read+0x10", f"{place:#x} is {name}")


def a_map_of_the_link_is_moved(seen: Seen) -> None:
    slide = seen.truth["_text"] - LINKED_TEXT
    path = WORK / "System.map"
    path.write_text(
        "".join(
            f"{a - slide if a > LINKED_TEXT else a:016x} T {name}\n"
            for name, a in seen.truth.items()
        )
    )
    linked = Symbols.from_map(str(path))
    linked.slide = running_slide(linked, seen.memory, seen.paging)
    expect(linked.slide == slide, f"{linked.slide:#x} in place of {slide:#x}")
    expect({name: linked[name] for name in NAMES} == seen.truth, repr(linked))


def frames_of_an_idle_processor(seen: Seen) -> None:
    frames = backtrace(seen.regs, seen.read, seen.symbols)
    trace = "\n".join(map(str, frames))
    print(trace)
    names = [(frame.symbol or "?").partition("+")[0] for frame in frames]
    expect(set(names) >= IDLE, trace)
    expect("start" in names[-1] and all(frame.sure for frame in frames), trace)


def memory_by_virtual_address(seen: Seen) -> None:
    """As KVM translates it, page by page; all of a mebibyte of the kernel's text."""
    text = seen.truth["_text"]
    data = seen.read(text, 1 << 20)
    for page in range(0, 1 << 20, 0x10000):
        gpa = seen.fd.translate(text + page)
        own = data[page : page + 4096]
        expect(gpa is not None and seen.memory.read(gpa, 4096) == own, hex(page))
    expect(seen.read(seen.truth["linux_banner"], 14) == b"Linux version ", "no banner")
    (own,) = pagetables.mappings(seen.memory, seen.paging, text, text)
    expect(own.flags == "x", f"the text is mapped {own}")
    note = find_vmcoreinfo(seen.memory, seen.paging, seen.symbols)
    expect(note is not None and b"SYMBOL(init_uts_ns)=" in note, str(note))


def core_has_it_all(seen: Seen) -> None:
    note = find_vmcoreinfo(seen.memory)
    expect(note == find_vmcoreinfo(seen.memory, seen.paging, seen.symbols), str(note))
    path = WORK / "core"
    write_core(str(path), seen.memory, [{**seen.regs, **seen.sregs}], note)
    try:
        with path.open("rb") as stream:
            (load,) = [s for s in ELFFile(stream).iter_segments() if s["p_type"] == "PT_LOAD"]
            expect(load.data() == seen.memory.read(0, seen.memory.size), "other RAM")
        size, used = path.stat().st_size, path.stat().st_blocks * 512
        expect(used < size, f"{used} of {size} bytes: no holes")
    finally:
        path.unlink()


def symbols_before_the_first_instruction(kernel: str, initramfs: str) -> None:
    """Stopped when the kernel has unpacked itself, and then at a symbol that ran not yet."""
    jumps = unpacking_of(kernel)
    with vmm.Guest(
        kernel=kernel, initramfs=initramfs, memory="256M", cmdline="console=ttyS0 quiet"
    ) as guest:
        cpu = guest.cpus[0]
        stop = guest.run(until=jumps.first, seconds=patience(60))
        expect(cpu.address == jumps.first, f"{stop} {cpu}")
        second = cpu.regs.rax + jumps.second
        stop = guest.run(until=second, seconds=patience(120))
        expect(cpu.address == second, f"{stop} {cpu}")
        symbols = Symbols.from_ram(guest.memory, image=cpu.regs.rax)
        start = symbols["start_kernel"]
        stop = guest.run(until=start, seconds=patience(60))
        expect(cpu.address == start, f"{stop} {cpu} is not {start:#x}")
        expect(b"Linux version" not in guest.serial.bytes, guest.serial.text)
        paging = Paging(cpu.sregs.cr3, cpu.sregs.cr4, cpu.sregs.efer, cpu.sregs.cr0)
        name = symbol_at(kernel, cpu.address, guest.memory, paging)
        expect(name == "start_kernel", f"{name}")


def processes_by_drgn(kernel: str, initramfs: str, vmlinux: str) -> None:
    """drgn by the kernel's debug information, over a core and live: it lists what `ps` listed."""
    import drgn
    from drgn.helpers.linux.pid import for_each_task

    def tasks_of(program: drgn.Program) -> list[tuple[int, str]]:
        program.load_debug_info([vmlinux])
        tasks = for_each_task(program)
        return [(task.pid.value_(), task.comm.string_().decode()) for task in tasks]

    with vmm.Guest(
        kernel=kernel, initramfs=initramfs, memory="256M", cmdline="console=ttyS0 quiet"
    ) as guest:
        seen = Seen(guest)
        note = find_vmcoreinfo(seen.memory)
        path = WORK / "core"
        write_core(str(path), seen.memory, [{**seen.regs, **seen.sregs}], note)
        rows = [row.split(None, 1) for row in told(guest.serial.text, "process")]
        live = tasks_of(guest.drgn())
    inside = {(int(pid), name) for pid, name in rows if name not in ("ps", "sed")}
    program = drgn.Program()
    program.set_core_dump(str(path))
    tasks = tasks_of(program)
    path.unlink()
    expect(live == tasks, f"live {sorted(live)}\nin the core {sorted(tasks)}")
    # Workers come and go, and `ps` shows what they work on.
    outside = {task for task in tasks if "kworker" not in task[1] and task[1] != "sleep"}
    inside = {task for task in inside if "kworker" not in task[1] and task[1] != "sleep"}
    expect(len(inside) > 20 and outside == inside, f"{sorted(outside ^ inside)}\n{tasks}")
