"""A Linux guest in the hands of a script: the first sixty seconds of one who tries it."""

from __future__ import annotations

import vmm
from tests.lab.guests.guest_run import expect
from tests.support.speed import patience
from vmm.debug.abilities import ABILITIES

CMDLINE = "console=ttyS0 quiet panic=-1"


def told(*words: object) -> None:
    """At once: a scenario that hangs has told how far it came."""
    print(*words, flush=True)


def first_sixty_seconds(kernel: str, initramfs: str, cpus: int) -> None:
    """From the entry of a bzImage to its idle kernel, by symbols alone."""
    with vmm.Guest(
        kernel=kernel, initramfs=initramfs, memory="256M", cpu_count=cpus, cmdline=CMDLINE
    ) as guest:
        to_kernel_init(guest)
        guest.serial.expect("guest: ready", patience(90))
        frames = guest.cpus[0].backtrace()
        expect(len(frames) > 2, f"{frames}")


def points_in_a_kernel(kernel: str, initramfs: str, part: str) -> None:
    """Breakpoints and watchpoints of one kind in a kernel that boots."""
    with vmm.Guest(kernel=kernel, initramfs=initramfs, memory="256M", cmdline=CMDLINE) as guest:
        to_kernel_init(guest)
        {"software": software, "hardware": hardware, "watches": watches, "steps": steps}[part](
            guest
        )


def to_kernel_init(guest: vmm.Guest) -> None:
    told("running to start_kernel")
    stop = guest.run(until="start_kernel", seconds=patience(30))
    told(stop)
    expect(stop.symbol == "start_kernel", f"{stop}")
    banner = guest.cpus[0].memory.read_string("linux_banner")
    expect(banner.startswith("Linux version"), banner)
    # By then the kernel has rewritten its functions' entries for ftrace.
    stop = guest.run(until="kernel_init", seconds=patience(30))
    told(stop)
    expect(stop.symbol == "kernel_init", f"{stop}")


def software(guest: vmm.Guest) -> None:
    """A software breakpoint at a function's entry: action, condition, nothing shows in memory."""
    entry = guest.symbols["kmem_cache_alloc"]
    code = guest.cpus[0].memory.read(entry, 16)
    point = guest.breakpoint("kmem_cache_alloc", hardware=False)
    expect(point.kind in ("int3", "port"), f"{point}")
    seen = []
    point.action = lambda cpu: seen.append(cpu.regs.rdi) or (len(seen) == 50 and vmm.STOP) or None
    stop = guest.run(seconds=patience(30))
    expect(stop.kind == "breakpoint" and len(seen) == 50, f"{stop} {len(seen)}")
    expect(all(value >> 63 for value in seen), f"no pointers of the kernel: {seen}")
    expect(guest.cpus[0].memory.read(entry, 16) == code, "the patch shows")
    point.remove()
    told(point)
    in_vain(guest, False)


def in_vain(guest: vmm.Guest, by_hardware: bool) -> None:
    """A condition that never holds: the kernel goes on, and is seen to, with Python and without."""
    rates = []
    for condition in (lambda cpu: cpu.regs.rdi == 1, "rdi == 1"):
        point = guest.breakpoint("kmem_cache_alloc", hardware=by_hardware, condition=condition)
        stop = guest.run(seconds=4)
        expect(stop.kind == "timeout" and not point.hits, f"{stop} {point}")
        rates.append(point.passed / 4)
        point.remove()
    told(f"hits in vain a second: {rates[0]:.0f} with a function, {rates[1]:.0f} with a text")
    expect(all(rates), f"{rates}")


def hardware(guest: vmm.Guest) -> None:
    if not ABILITIES.hardware:
        return
    point = guest.breakpoint("do_sys_openat2", hardware=True, condition="rdi >= 0")
    names = []

    def opened(cpu: vmm.Cpu) -> object:
        names.append(cpu.memory.read_string(cpu.regs.rsi))
        return vmm.STOP if len(names) == 3 else None

    point.action = opened
    stop = guest.run(seconds=patience(30))
    expect(stop.kind == "breakpoint" and stop.symbol == "do_sys_openat2", f"{stop}")
    expect(all(name.startswith("/") for name in names), f"{names}")
    point.remove()
    told(point, names)
    in_vain(guest, True)


def watches(guest: vmm.Guest) -> None:
    """Who writes jiffies: by hardware where that hits, and by the page."""
    kinds = [(8, "hardware")] if ABILITIES.watch else []
    kinds += [(24, "page")] if ABILITIES.page else []
    for size, kind in kinds:
        point = guest.watch("jiffies_64", size)
        expect(point.kind == kind, f"{point}")
        stop = guest.run(seconds=patience(30))
        expect(stop.kind == "watch" and stop.where is point, f"{stop}")
        told(stop, [str(frame) for frame in guest.cpus[stop.cpu].backtrace(5)])
        point.remove()


def steps(guest: vmm.Guest) -> None:
    before = guest.cpus[0].address
    places = {guest.step().address for _ in range(50)}
    expect(len(places) > 10 and before, f"{sorted(places)}")
