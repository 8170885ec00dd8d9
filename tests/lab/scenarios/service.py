"""As a service: what the manager sees of an instance's life, under the system's and a user's."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

from tests.lab.guests.guest_run import expect
from tests.lab.scenarios.lifecycle import COUNT
from tests.lab.scenarios.passthrough import NVME, find
from tests.lab.units import ROOT, Service, drop_in, run, wait_for
from tests.support.elf_builder import build_elf
from tests.support.guest_asm import Program
from tests.support.speed import patience

CMDLINE = "console=hvc0 quiet panic=-1"
# Hears the power button; the second boot of a disk leaves by itself.
LISTEN = (
    COUNT
    + """
if [ $n != 2 ]; then
  echo "guest: ready $n"
  dd if=/dev/input/event0 of=/dev/null bs=24 count=1 2>/dev/null
  echo "guest: button heard"
fi
"""
)
READ_NVME = """
for try in 1 2 3 4 5 6 7 8 9 10; do [ -b /dev/nvme0n1 ] && break; sleep 1; done
echo "guest: read $(md5sum </dev/nvme0n1 | cut -d' ' -f1)"
"""
PANIC = COUNT + "[ $n = 2 ] || echo c >/proc/sysrq-trigger\n"
# What a guest may write is no word of the VMM's or of the host's.
SPOOF = 'echo "<1>guest: alarm"\n'
HALT = bytes(Program().out_string(0x3F8, b"up\n").raw("f4 ebfd").code)
FAULT = bytes(Program().write(0x1000, 0).write(0x1004, 0).raw("0f011d00100000 0f0b").code)
# What a guest gets by default to shut down.
STOP_SECONDS = 25
MANAGER_KILLS = re.compile(r"timed out|Killing process")


def linux(service: Service, kernel: str, initramfs: str, job: str, **more: object) -> Service:
    return service.configure(
        kernel, job, INITRAMFS_FILEPATH=initramfs, CMDLINE=CMDLINE, MEMORY_CONFIG="size=256M",
        STOP_TIMEOUT_SECONDS=patience(STOP_SECONDS), **more,
    )  # fmt: skip


def tiny(service: Service, code: bytes = HALT, **more: object) -> Service:
    """A guest of a few instructions that is deaf to the power button."""
    program = Path("/dev/shm/deaf.elf" if code is HALT else "/dev/shm/faulty.elf")
    program.write_bytes(build_elf(code))
    return service.configure(
        str(program), SERIAL=f"file={service.guest_file}",
        **{"CONSOLE": "null", "STOP_TIMEOUT_SECONDS": 2, "MEMORY_CONFIG": "size=16M", **more},
    )  # fmt: skip


def runs_as_one_command(service: Service) -> str:
    """Active, in its slice, one process, and the manager shows it as our command; its pid."""
    facts = service.show()
    expect(facts.state == "active", service.told())
    expect(facts.processes() == ["vllmd-hypervisor start"], str(facts.processes()))
    expect("/vllmd.slice/" in facts.group, facts.group)
    return facts.pid


def life(kernel: str, initramfs: str, kind: str, unit: str) -> None:
    """Start, status, restart with a clean shutdown, power-off by the guest."""
    service = Service(kind, f"{kind}-{unit[:6]}", unit)
    linux(service, kernel, initramfs, LISTEN).start()
    # Of Type=simple the manager knows no more than that there is a process.
    service.until("guest: boot 1")
    first = runs_as_one_command(service)
    told = service.told()
    expect(told.count("vllmd-hypervisor start") == 1, told)
    if unit != "simple":
        expect('Status: "running: 1 vCPUs, 256 MiB"' in told, told)
        code, told = service.command("status", service.name)
        expect(code == 0 and f"{service.name}: running" in told, told)
    service.until("guest: ready 1")
    took = service.restart()
    expect("guest: button heard" in service.console(), service.console())
    expect(took < patience(25), f"{took} s to restart")
    facts = service.show()
    expect(facts.pid not in ("0", first) and facts.restarts == "0", str(facts))
    service.until("guest: boot 2")
    facts = service.wait_for("end", lambda now: now.state not in ("active", "deactivating"))
    expect((facts.state, facts.result) == ("inactive", "success"), str(facts))
    expect(not MANAGER_KILLS.search(service.managers_words()), service.managers_words())


def deaf_guest_is_killed_by_us(kind: str, own: int, managers: int) -> None:
    """Code 37 after ``own`` seconds, though the manager's patience is ``managers`` seconds."""
    service = tiny(Service(kind, "deaf"), STOP_TIMEOUT_SECONDS=own)
    drop_in(kind, "vllmd-hypervisor@deaf", "t", f"[Service]\nTimeoutStopSec={managers}\n")
    service.ctl("daemon-reload")
    service.start()
    started = time.monotonic()
    service.ctl("stop", service.unit, check=False)
    took = time.monotonic() - started
    expect(own <= took < own + patience(10), f"{took} s")
    facts = service.show()
    expect((facts.state, facts.exit_code) == ("failed", "37"), str(facts))
    words = service.managers_words()
    expect(not MANAGER_KILLS.search(words), words)


def told_to_stop_it_stays_down(kind: str) -> None:
    """By our own verb, not the manager's: whatever force it took, it is not started again."""
    for number, words in enumerate((("stop", "--now"), ("stop",))):
        service = tiny(Service(kind, f"down{number}")).start()
        wait_for("the guest", lambda s=service: s.command("status", s.name)[0] == 0)
        code, told = service.command(*words, service.name)
        expect(code == (0 if "--now" in words else 37), f"{code} {told}")
        time.sleep(3)
        facts = service.show()
        expect((facts.state, facts.restarts) == ("failed", "0"), f"{facts}\n{service.told()}")


def hung_vmm_is_killed_by_us() -> None:
    """Without a watchdog a process that does not answer is killed by our own `stop`."""
    service = tiny(Service("user", "hung", "simple"), NAME="hung").start()
    wait_for("the guest", lambda: service.command("status", "hung")[0] == 0)
    pid = service.show().pid
    os.kill(int(pid), signal.SIGSTOP)
    started = time.monotonic()
    service.ctl("stop", service.unit, check=False)
    expect(time.monotonic() - started < patience(28), "the manager's patience was needed")
    facts = service.show()
    expect((facts.state, facts.result) == ("failed", "signal"), str(facts))
    expect(f"process {pid} did not end" in service.told(), service.told())
    expect(not MANAGER_KILLS.search(service.managers_words()), service.managers_words())


def restarted_after_its_death(kind: str) -> None:
    """kill -9 leaves nothing locked; a stopped process misses the watchdog; two side by side."""
    service = tiny(Service(kind, "one"))
    other = tiny(Service(kind, "two"))
    drop_in(kind, "vllmd-hypervisor@one", "watchdog", "[Service]\nWatchdogSec=10\n")
    service.ctl("daemon-reload")
    service.ctl("start", service.unit, other.unit)
    pid, others_pid = runs_as_one_command(service), runs_as_one_command(other)
    expect(pid != others_pid, "one process for two instances")
    for number, how in (("1", signal.SIGKILL), ("2", signal.SIGSTOP)):
        os.kill(int(pid), how)
        service.wait_for(
            "restart", lambda now, n=number: now.restarts == n and now.state == "active"
        )
        before, pid = pid, runs_as_one_command(service)
        expect(pid != before, "the same process")
    expect("Watchdog timeout" in service.managers_words(), service.managers_words())
    time.sleep(3)
    expect(service.show().pid == pid, "a healthy VM missed its watchdog")
    code, told = service.command("status", service.name)
    expect(code == 0, told)
    expect(runs_as_one_command(other) == others_pid, "the other instance was touched")
    service.end()
    other.end()


def crash_is_a_failure(kind: str) -> None:
    """A guest that can do nothing but fault: code 33, started again, given up in the end."""
    service = tiny(Service(kind, "crash"), FAULT)
    limit = "[Unit]\nStartLimitBurst=2\nStartLimitInterval=1h\n"
    drop_in(kind, "vllmd-hypervisor@crash", "t", limit)
    service.ctl("daemon-reload")
    service.ctl("start", service.unit, check=False)
    facts = service.wait_for("surrender", lambda now: now.state == "failed")
    expect((facts.restarts, facts.exit_code) == ("2", "33"), f"{facts}\n{service.told()}")


def panic_is_a_failure(kernel: str, initramfs: str, kind: str) -> None:
    """A guest whose kernel panics: code 35, started again; the second boot powers off."""
    service = Service(kind, "panic")
    linux(service, kernel, initramfs, PANIC)
    service.start()
    service.until("guest: boot 2")
    facts = service.wait_for("end", lambda now: now.state not in ("active", "deactivating"))
    expect((facts.state, facts.result) == ("inactive", "success"), str(facts))
    words = service.managers_words()
    for one in ("status=35", "Failed with result 'exit-code'", "restart counter is at 1."):
        expect(words.count(one) == 1, words)


def a_device_in_the_sandbox(kernel: str, initramfs: str, md5: str) -> None:
    """An NVMe bound by our unit: the sandbox lets VFIO work, and all RAM be pinned."""
    bdf = find(NVME)
    service = Service("system", "device")
    linux(service, kernel, initramfs, READ_NVME, DEVICE_FILEPATH_LIST=bdf)
    run("systemctl", "enable", "--now", f"vllmd-bind@{bdf}.service")
    service.start()
    locked = f"/proc/{service.show().pid}/limits"
    expect("Max locked memory         unlimited" in Path(locked).read_text(), locked)
    service.until(f"guest: read {md5}")
    facts = service.wait_for("end", lambda now: now.state not in ("active", "deactivating"))
    expect((facts.state, facts.result) == ("inactive", "success"), service.told())
    said = [one["MESSAGE"] for one in service.journal()]
    expect(
        any("guest RAM mapped for devices by type1v2: 256 MiB" in one for one in said), str(said)
    )


def mistakes_are_told(kind: str) -> None:
    """Failed, not restarted; each mistake one readable record with its variable, in status too."""
    service = tiny(Service(kind, "wrong"), CPU_COUNT="many", MEMRY_CONFIG="size=1G")
    failed_with(service, "2", ["CPU_COUNT", "MEMRY_CONFIG"])
    service = tiny(Service(kind, "astray"), LOG_FILEPATH="/proc/nowhere/log")
    failed_with(service, "38", ["LOG_FILEPATH"])


def failed_with(service: Service, code: str, variables: list[str]) -> None:
    service.ctl("start", service.unit, check=False)
    facts = service.wait_for("failure", lambda now: now.state == "failed")
    expect((facts.exit_code, facts.restarts) == (code, "0"), str(facts))
    told = service.told()
    records = service.journal()
    for variable in variables:
        name = f"VLLMD_HYPERVISOR_{variable}"
        found = [one for one in records if one.get("VLLMD_VARIABLE") == name]
        expect(len(found) == 1, f"{name}: {records}\n{told}")
        expect(found[0]["PRIORITY"] == "3", str(found))
        expect(found[0]["MESSAGE"].startswith(name), str(found))
        expect(found[0]["MESSAGE"] in told, told)
    errors = [one for one in records if one["PRIORITY"] == "3"]
    expect(len(errors) == len(variables), str(errors))
    (status,) = [line for line in told.splitlines() if line.strip().startswith("Status: ")]
    expect(all(f"VLLMD_HYPERVISOR_{variable}" in status for variable in variables), told)


def logs_to_file_and_journal() -> None:
    """Both at once, with priorities; logrotate and a reload open the file anew."""
    log = Path("/var/log/vllmd/logged/vm.log")
    service = tiny(Service("system", "logged"), LOG_FILEPATH=f"{log},journald", DEBUG=1)
    service.start()
    records = service.journal()
    seen = {one["PRIORITY"] for one in records}
    expect({"6", "7"} <= seen, str(records))
    said = [one for one in records if "runs as process" in one["MESSAGE"]]
    expect(len(said) == 1 and said[0]["VLLMD_INSTANCE"] == "logged", str(records))
    expect("runs as process" in log.read_text(), log.read_text())
    run(
        "logrotate",
        "--force",
        "--state",
        "/run/logrotate",
        str(ROOT / "packaging/logrotate/vllmd-hypervisor"),
    )
    rotated = log.with_name("vm.log.1")
    wait_for("a new log file", log.exists)
    wait_for("its first line", lambda: "logs reopened" in log.read_text())
    expect("runs as process" in rotated.read_text(), rotated.read_text())
    service.ctl("reload", service.unit)
    runs_as_one_command(service)
    expect(log.read_text().count("logs reopened") == 2, log.read_text())
    service.ctl("stop", service.unit, check=False)
    killed = [one for one in service.journal() if one["PRIORITY"] == "4"]
    expect(killed and "was killed" in killed[-1]["MESSAGE"], str(killed))


def host_shuts_down(kernel: str, initramfs: str) -> None:
    """With two VMs running, their consoles in the journal; does not come back."""
    services = [Service(kind, f"{kind}-last") for kind in ("system", "user")]
    for service in services:
        linux(service, kernel, initramfs, SPOOF + LISTEN, CONSOLE="tty").start()
    for service in services:
        records: list[dict[str, str]] = []
        service.patiently("guest", lambda one=service, seen=records: is_ready(one, seen))
        said = [one for one in records if one["SYSLOG_IDENTIFIER"] == "vllmd-guest"]
        expect({one["PRIORITY"] for one in said} == {"6"}, str(said))
        expect(any(one["MESSAGE"].startswith("<1>guest: alarm") for one in said), str(said))
    run("systemctl", "--no-block", "poweroff")
    time.sleep(patience(120))


def is_ready(service: Service, records: list[dict[str, str]]) -> bool:
    records[:] = service.journal()
    return any("guest: ready" in one["MESSAGE"] for one in records)
