"""`status`, `list`, `forget`: what is known of instances, alive or dead, and no more than that."""

from __future__ import annotations

from vmm.command.facts import UNEXPLAINED, last_exit, number
from vmm.errors import BusyError, VmmError
from vmm.light.printable import visible
from vmm.run.folder import Folder
from vmm.run.status import ENDED_STATES, FAILED, STARTING, STATES, STOPPED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from vmm.run.places import Places
    from vmm.run.process import Process

EXIT_NOT_RUNNING = 3
EXIT_UNKNOWN = 4
# A list has many to ask.
LIST_SECONDS = 2.0
STATUS_SECONDS = 10.0
MEMORY_MAX = 1 << 60


def status(folder: Folder, seconds: float = STATUS_SECONDS) -> tuple[int, dict[str, Any]]:
    """(exit code, facts) of an instance, alive or dead."""
    if not folder.running:
        return EXIT_NOT_RUNNING, _dead_status(folder)
    process = folder.process()
    try:
        return _alive_status(folder, process, seconds)
    finally:
        if process is not None:
            process.close()


def _alive_status(
    folder: Folder, process: Process | None, seconds: float
) -> tuple[int, dict[str, Any]]:
    facts: dict[str, Any] = {"name": folder.name, "state": "unknown", "pid": None}
    who = "its process"
    if process is not None:
        facts["pid"] = process.pid
        who = f"process {process.pid}"
        if held := process.held():
            return EXIT_UNKNOWN, {**facts, "error": f"{who} {held}"}
    try:
        answer = folder.ask({"command": "status"}, seconds)
    except FileNotFoundError:
        # A state that is this process's own was told when there was a socket.
        if not folder.state():
            return 0, {**facts, "state": STARTING}
        return EXIT_UNKNOWN, {**facts, "error": f"{who} runs, but its control socket is gone"}
    except OSError as error:
        # It may have been suspended in the meantime.
        held = process.held() if process is not None else ""
        told = f"{who} {held or f'does not answer: {visible(error, 200)}'}"
        if folder.unseen:
            told += f"; {folder.unseen}"
        return EXIT_UNKNOWN, {**facts, "error": told}
    if answer.get("state") not in STATES:
        return EXIT_UNKNOWN, {**facts, "error": "its answer is not understood"}
    # Named as it was asked for, and with the pid that it has here.
    return 0, {**answer, "name": folder.name, **({"pid": facts["pid"]} if facts["pid"] else {})}


def _dead_status(folder: Folder) -> dict[str, Any]:
    owner = folder.owner()
    if owner is None:
        return {"name": folder.name, "state": STOPPED, "last_exit": None}
    facts = folder.state()
    if not facts:
        # Killed before it wrote its first state.
        facts = {"pid": owner.pid, "start_time": owner.start_time}
    facts["name"] = folder.name
    if facts.get("state") not in ENDED_STATES:
        facts["state"] = FAILED
        facts["last_exit"] = {"code": None, "reason": UNEXPLAINED, "time": None}
    return facts


def row(folder: Folder) -> dict[str, Any]:
    """An instance in a list: name, state, pid, since when, CPUs, memory in bytes, folder."""
    _, facts = status(folder, LIST_SECONDS)
    state = facts["state"]
    alive = state not in ENDED_STATES
    last = last_exit(facts)
    since = facts.get("started_at") if alive else last and last["time"]
    memory, vcpus = facts.get("memory"), facts.get("vcpus")
    size = number(memory.get("size") if isinstance(memory, dict) else None, 0, MEMORY_MAX, -1)
    pid = number(facts.get("pid"), 1, 1 << 31, -1)
    return {
        "name": folder.name,
        "state": state,
        "pid": int(pid) if alive and pid > 0 else None,
        "since": visible(since, 40) if since else None,
        "cpus": len(vcpus) if isinstance(vcpus, list) else None,
        "memory": int(size) if size >= 0 else None,
        "user": folder.uid,
        "folder": folder.path,
        "error": visible(facts["error"]) if "error" in facts else None,
    }


def rows(places: Places) -> list[dict[str, Any]]:
    """All instances that are known."""
    found = []
    for place, name in places.known:
        try:
            folder = Folder(place, name)
        except OSError:
            continue  # forgotten in between, or no instance's
        try:
            found.append(row(folder))
        finally:
            folder.close()
    return found


COLUMNS = ("NAME", "STATE", "PID", "SINCE", "CPUS", "MEMORY", "FOLDER")


def table(found: list[dict[str, Any]]) -> str:
    """The list as text: one line an instance, a head above."""
    lines: list[tuple[str, ...]] = [COLUMNS]
    for each in found:
        memory = "-" if each["memory"] is None else f"{each['memory'] >> 20}M"
        cells = [each[key] for key in ("name", "state", "pid", "since", "cpus")]
        text = ["-" if cell is None else visible(cell, 100) for cell in cells]
        lines.append((*text, memory, visible(each["folder"])))
    widths = [max([len(line[column]) for line in lines]) for column in range(len(COLUMNS))]
    return "\n".join(
        [
            "  ".join(
                [f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)]
            ).rstrip()
            for line in lines
        ]
    )


def forget(folder: Folder) -> str:
    """Remove what is left of an instance that does not run. BusyError when it does."""
    folder.forget()
    return f"{folder.name}: forgotten"


def forget_all(places: Places) -> str:
    """Remove what is left of all that do not run. VmmError tells which could not be removed."""
    done, failed = [], []
    for place, name in places.known:
        try:
            folder = Folder(place, name)
        except OSError:
            continue
        try:
            folder.forget()
            done.append(visible(name))
        except BusyError:
            continue
        except VmmError as error:
            failed.append(str(error))
        finally:
            folder.close()
    if failed:
        raise VmmError("\n".join(failed))
    return f"forgotten: {', '.join(done) or 'none'}"
