"""gdb attached to a guest that runs Linux on two vCPUs."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path

import vmm
from tests.lab.guests.job_guest import write_job
from tests.support.gdb import Gdb
from tests.support.speed import patience
from vmm.debug.abilities import ABILITIES

WORK = Path("/tmp")
NAMES = ("do_sys_openat2", "linux_banner", "jiffies_64", "init_uts_ns")
CSTAR = 0xC0000083
# include/uapi/linux/utsname.h
UTS = """
struct new_utsname {
    char sysname[65], nodename[65], release[65], version[65], machine[65], domainname[65];
} made_for_its_type;
"""
CMDLINE = "console=ttyS0 quiet panic=-1 nokaslr"
# It opens files from time to time, and says that it lives.
JOB = f"""
echo 0 >/proc/sys/kernel/kptr_restrict
grep -E ' ({"|".join(NAMES)})$' /proc/kallsyms | sed 's/^/guest: symbol /'
echo "guest: ready"
n=0
while :; do n=$((n+1)); cat /proc/version >/dev/null; echo "guest: round $n"; sleep 0.2; done
"""


def expect(condition: object, told: str) -> None:
    if not condition:
        raise AssertionError(told)


class Visit:
    """What gdb is typed, with the values that it prints."""

    def __init__(self, gdb: Gdb) -> None:
        self.gdb = gdb

    def type(self, line: str, seconds: float = 120) -> str:
        return self.gdb.type(line, seconds)

    def value(self, expression: str) -> int:
        told = self.type(f"p/x {expression}")
        found = re.search(r"= 0x([0-9a-f]+)", told)
        expect(found, told)
        assert found is not None
        return int(found[1], 16)


def linux_under_gdb(kernel: str, initramfs: str) -> None:
    system = WORK / "gdb-system.img"
    system.write_bytes(bytes(1 << 20))
    config = write_job(WORK / "gdb-config.img", JOB)
    with vmm.Guest(
        kernel=kernel, initramfs=initramfs, memory="256M", cpu_count=2, cmdline=CMDLINE,
        system_image=system, config_image=config,
    ) as guest:  # fmt: skip
        guest.serial.expect("guest: ready", patience(240))
        rows = re.findall(r"guest: symbol ([0-9a-f]+) \w (\w+)", guest.serial.text)
        addresses = {name: int(address, 16) for address, name in rows}
        expect(set(addresses) == set(NAMES), guest.serial.text)
        guest.start()
        with guest.gdb("127.0.0.1:0") as server:
            first_visit(guest, server.address, addresses)
            lives(guest)
            second_visit(guest, server.address, addresses)


def first_visit(guest: vmm.Guest, server: str, addresses: dict[str, int]) -> None:
    """Looks, breaks, steps and watches; leaves a breakpoint behind, which goes with gdb."""
    with Gdb(server) as gdb:
        visit = Visit(gdb)
        seen_as_it_is(visit, addresses)
        stops_at(visit, "hbreak", addresses["do_sys_openat2"])
        stops_at(visit, "break", addresses["do_sys_openat2"])
        over_a_call(visit, addresses["do_sys_openat2"])
        watches(visit, addresses["jiffies_64"])
        goes_on_and_is_interrupted(visit, guest)
        visit.type(f"break *{addresses['do_sys_openat2']:#x}")
        visit.type("detach")


def second_visit(guest: vmm.Guest, server: str, addresses: dict[str, int]) -> None:
    """Attached again: a struct by DWARF, system registers written, and the end of the guest."""
    with Gdb(server) as gdb:
        visit = Visit(gdb)
        a_struct(visit, addresses["init_uts_ns"])
        written_and_put_back(visit)
        goes_on_and_is_interrupted(visit, guest)
        visit.type("kill")
        deadline = time.monotonic() + patience(30)
        while guest.outcome is None:
            expect(time.monotonic() < deadline, "it was not killed")
            time.sleep(0.05)
        expect(guest.outcome.reason == "killed by the debugger", guest.outcome.reason)


def seen_as_it_is(visit: Visit, addresses: dict[str, int]) -> None:
    """Registers, threads and memory of a kernel that was stopped somewhere."""
    threads = visit.type("info threads")
    expect(len(re.findall(r"CPU [01] \[", threads)) == 2, threads)
    cr3 = visit.value("$cr3")
    expect(cr3 and cr3 % 16 == 0, hex(cr3))
    expect(visit.value("$efer") & 0xD00 == 0xD00, "efer")
    banner = visit.type(f"x/s {addresses['linux_banner']:#x}")
    expect("Linux version" in banner, banner)
    lstar = visit.type("monitor msr 0xc0000082")
    expect(re.search(r"msr 0xc0000082 0xffffffff8", lstar), lstar)


def stops_at(visit: Visit, how: str, address: int) -> None:
    """At the entry of a function, step by step, and where it returns to."""
    told = visit.type(f"{how} *{address:#x}")
    expect(re.search("reakpoint \\d+ at", told), told)
    told = visit.type("continue")
    expect("Breakpoint" in told, told)
    expect(visit.value("$pc") == address, told)
    back = visit.value("*(unsigned long *)$rsp")
    expect(back >> 31 == 0x1FFFFFFFF, hex(back))
    visit.type("delete")
    for _ in range(5):
        visit.type("stepi")
    pc = visit.value("$pc")
    expect(address < pc < address + 64, hex(pc))
    told = visit.type(f"thbreak *{back:#x}") + visit.type("continue")
    expect(visit.value("$pc") == back, told)


def over_a_call(visit: Visit, function: int) -> None:
    """`nexti` at the first call of the function comes back behind it."""
    listed = visit.type(f"x/60i {function:#x}")
    rows = re.findall(r"(0x[0-9a-f]+):\s+(\S+)", listed)
    calls = [n for n, (_, word) in enumerate(rows) if word.startswith("call")]
    expect(calls, listed)
    at, behind = [int(rows[calls[0] + n][0], 16) for n in (0, 1)]
    told = visit.type(f"thbreak *{at:#x}") + visit.type("continue")
    expect(visit.value("$pc") == at, told)
    stack = visit.value("$rsp")
    told = visit.type("nexti")
    expect((visit.value("$pc"), visit.value("$rsp")) == (behind, stack), told)
    told = visit.type("stepi")
    expect(visit.value("$pc") != behind, told)


def a_struct(visit: Visit, address: int) -> None:
    """Printed by the types of a file with DWARF, as by those of a vmlinux."""
    source = WORK / "uts.c"
    source.write_text(UTS)
    types = source.with_suffix(".o")
    subprocess.run(["gcc", "-g", "-c", "-o", types, source], check=True)
    visit.type(f"add-symbol-file {types} 0x1000")
    told = visit.type(f"print *(struct new_utsname *) {address:#x}")
    expect(re.search('sysname = "Linux", .*release = "[0-9]+[.]', told.replace("\\000", "")), told)


def written_and_put_back(visit: Visit) -> None:
    """cr3 as a register of gdb's, an MSR by `monitor`."""
    cr3 = visit.value("$cr3")
    visit.type(f"set $cr3 = {cr3 ^ 0x1000:#x}")
    told = visit.type("monitor cr3")
    expect(f"cr3 {cr3 ^ 0x1000:#x}" in told, told)
    told = visit.type(f"monitor cr3 {cr3:#x}")
    expect(f"cr3 {cr3:#x}" in told, told)
    before = visit.type(f"monitor msr {CSTAR:#x}")
    kept = re.search(r"msr 0xc0000083 (0x[0-9a-f]+)", before)
    expect(kept, before)
    told = visit.type(f"monitor msr {CSTAR:#x} 0xffffffff81234560")
    expect("msr 0xc0000083 0xffffffff81234560" in told, told)
    assert kept is not None
    told = visit.type(f"monitor msr {CSTAR:#x} {kept[1]}")
    expect(f"msr 0xc0000083 {kept[1]}" in told, told)


def watches(visit: Visit, address: int) -> None:
    if not ABILITIES.watch:
        raise AssertionError("this ground is known to do watchpoints")
    before = visit.value(f"*(unsigned long *){address:#x}")
    visit.type(f"watch *(unsigned long *){address:#x}")
    told = visit.type("continue")
    expect("watchpoint" in told and "New value" in told, told)
    # More than one tick later: time went on while the guest stood still.
    expect(visit.value(f"*(unsigned long *){address:#x}") > before, told)
    visit.type("delete")


def goes_on_and_is_interrupted(visit: Visit, guest: vmm.Guest) -> None:
    visit.gdb.send("continue")
    visit.gdb.expect(b"Continuing")
    lives(guest)
    visit.gdb.interrupt()
    told = visit.gdb.expect()
    expect("SIGINT" in told, told)


def lives(guest: vmm.Guest) -> None:
    """The guest says another word of its own."""
    before, deadline = guest.serial.text.count("guest: round"), time.monotonic() + patience(60)
    while guest.serial.text.count("guest: round") < before + 2:
        expect(time.monotonic() < deadline, guest.serial.text[-500:])
        time.sleep(0.05)
