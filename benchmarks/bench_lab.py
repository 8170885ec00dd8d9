"""Linux and Debian boots, and fio in a guest, side by side in one lab."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from typing import Any

from tests.lab.guests.debian import DebianGuest
from tests.lab.guests.firmware import NAMES, find_firmware
from tests.lab.guests.job_guest import JobGuest
from tests.lab.rig.lab import Lab, LabError
from tests.lab.rig.progress import say

INSIDE = "benchmarks.inside_lab:run"
COUNTED = "benchmarks.inside_exits:count"
ATTEMPTS = 3


Row = dict[str, Any]


def collect(
    make_lab: Callable[[], Any], calls: list[dict[str, object]], function: str = INSIDE
) -> list[Row]:
    """Results of the calls, in order: figures, or ``error`` with the reason.

    A lab that the emulator lost is made anew. A VMM that fails in a lab that goes on has no more
    turns, nor has one with which labs were lost too often.
    """
    found: list[Row] = []
    failed: dict[object, str] = {}
    lab: Any = None
    lost = 0
    while len(found) < len(calls):
        call = calls[len(found)]
        name = call["vmm"]
        try:
            if name not in failed:
                lab = lab or make_lab()
                text = lab.call(function, timeout=900, **call)
                row = json.loads(text.strip().splitlines()[-1])
        except LabError as error:
            lost += 1
            say(f"lab: {error}")
            if lab is not None:
                lab.close()
            lab = None
            if lost < ATTEMPTS:
                continue
            failed[name] = f"the lab was lost {lost} times: {error}"
        except AssertionError as error:
            failed[name] = str(error)
        lost = 0
        found.append({"error": failed[name]} if name in failed else row)
        say(f"    {name}: {found[-1]}")
    if lab is not None:
        lab.close()
    return found


def main(peers: dict[str, str], lab_rounds: int, only: Sequence[str] = ()) -> dict[str, object]:
    job, debian = JobGuest(), DebianGuest()
    vmms = {"vllmd-hypervisor": "", "QEMU microvm": shutil.which("qemu-system-x86_64") or ""}
    if "cloud-hypervisor" in peers:
        vmms["Cloud Hypervisor"] = peers["cloud-hypervisor"]
    if "alioth" in peers:
        vmms["Alioth"] = peers["alioth"]
    results: dict[str, object] = {}
    linux = {"kernel": str(job.image), "initramfs": str(job.initramfs)}
    system = {"kernel": str(debian.kernel), "initramfs": str(debian.initramfs)}
    if not only or "memory" in only:
        results["memory"] = by_memory(vmms, lab_rounds, linux)
    if not only or "exits" in only:
        results["exits"] = by_cause(vmms, linux)
    questions = [
        ("Linux to user space, s", "linux", linux, []),
        ("Debian to multi-user, s", "debian", system, [debian.image]),
        ("fio in Debian", "fio", system, [debian.image]),
    ]
    for firmware in NAMES:
        path = find_firmware(firmware)
        if path is not None:
            title = f"{firmware}: a whole disk to multi-user, s"
            questions.append((title, firmware, {"kernel": str(path)}, [debian.disk]))
    for title, what, files, drives in questions:
        if only and what not in only:
            continue
        rounds = 1 if what == "fio" else lab_rounds
        calls = [
            {"what": what, "vmm": name, "path": path, **files}
            for _ in range(rounds)
            for name, path in vmms.items()
            if what not in leaves_out(path)
        ]
        rows = collect(lambda drives=drives: Lab(drives=drives), calls)
        table: dict[str, list[Row]] = {}
        for call, row in zip(calls, rows, strict=True):
            table.setdefault(str(call["vmm"]), []).append(row)
        results[what] = show(title, table)
    return results


def leaves_out(path: str) -> tuple[str, ...]:
    """Questions that are none for a VMM."""
    if "alioth" in path:
        return ("debian", "fio", *NAMES)  # our Debian's console is a virtio device
    # QEMU's microvm is none of the machines that these firmwares know.
    return NAMES if "qemu" in path else ()


def by_memory(vmms: dict[str, str], rounds: int, linux: dict[str, str]) -> dict[str, Row]:
    """The same boot with memory of each kind: shared in huge and in small pages, and private."""
    calls = [
        {"what": "linux", "vmm": f"{name} {form}", "path": path, "memory": f"size=512M,{form}",
         **linux}
        for _ in range(rounds)
        for name, path in vmms.items()
        for form in ("shared=on", "shared=on,thp=off", "shared=off")
        # QEMU's is always a memfd; the others' thp= is of private memory alone.
        if "qemu" not in path and (not path or "thp" not in form)
    ]  # fmt: skip
    table: dict[str, list[Row]] = {}
    for call, row in zip(calls, collect(Lab, calls), strict=True):
        table.setdefault(str(call["vmm"]), []).append(row)
    return show("Linux to user space by memory, s", table, "vllmd-hypervisor shared=on,thp=off")


def by_cause(vmms: dict[str, str], linux: dict[str, str]) -> dict[str, Row]:
    """All exits of one boot each, by device and cause."""
    calls: list[dict[str, object]] = [
        {"vmm": name, "path": path, **linux} for name, path in vmms.items()
    ]
    found = dict(zip(vmms, collect(Lab, calls, COUNTED), strict=True))
    counted = [row for row in found.values() if "error" not in row]
    print("\nExits of a Linux boot: " + ", ".join(found))
    for name in dict.fromkeys(name for row in counted for name in row):
        print(f"{name:34}" + "".join(f"{row.get(name, 0):10}" for row in counted))
    for name, row in found.items():
        if "error" in row:
            print(f"{name}: failed: {row['error'].strip().splitlines()[-1]}")
    return found


def show(title: str, table: dict[str, list[Row]], base: str = "QEMU microvm") -> dict[str, Row]:
    """Best of the rounds by VMM, with the ratio to ``base`` (else Cloud Hypervisor)."""
    best = {name: best_of(rows) for name, rows in table.items()}
    measured = {name: row for name, row in best.items() if "error" not in row}
    print(f"\n{title} (best of {max(len(rows) for rows in table.values())})")
    for name, row in best.items():
        if name not in measured:
            print(f"{name:20}  failed: {row['error'].strip().splitlines()[-1]}")
            continue
        of = measured.get(base, measured.get("Cloud Hypervisor", row))
        cells = "".join(f"  {key} {row[key]:10.2f} ({row[key] / of[key]:.2f}x)" for key in row)
        print(f"{name:20}{cells}")
    return best


def best_of(rows: list[Row]) -> Row:
    """The best figure of each kind; a failure in any round is the row."""
    for row in rows:
        if "error" in row:
            return row
    return {key: (min if key == "seconds" else max)(row[key] for row in rows) for key in rows[0]}
