"""Inside the lab: takes jobs one at a time, streams their output, tells how they ended.

One JSON object a line, both ways, over a virtio port. A job is ``{"command": [...], "env": {...}}``
or ``{"function": "module:name", "arguments": {...}}``, both with ``"timeout"`` in seconds. Replies
are ``{"output": text}`` (an empty one every few seconds, so that a lab that stands still is
noticed) and, last, ``{"status": exit code}``.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from tests.lab.rig.diagnosis import describe
from tests.lab.rig.flaw import run_watched
from tests.lab.rig.reach import open_to_all
from tests.support.binary import command

PORT_NAME = "lab.agent"
TIMED_OUT = 124
HEARTBEAT_SECONDS = 5.0


def open_port() -> int:
    """The virtio port with our name, as the kernel shows it."""
    for entry in Path("/sys/class/virtio-ports").iterdir():
        if (entry / "name").read_text().strip() == PORT_NAME:
            return os.open(f"/dev/{entry.name}", os.O_RDWR)
    raise RuntimeError(f"no virtio port {PORT_NAME}")


def send(port: int, **message: Any) -> None:
    data = json.dumps(message).encode() + b"\n"
    while data:
        data = data[os.write(port, data) :]


def perform(job: dict[str, Any]) -> int:
    """In the child: do the job; returns its exit code."""
    os.environ.update(job.get("env", {}))
    open_to_all(command())
    if "command" in job:
        return run_watched(job["command"])
    module, _, name = job["function"].partition(":")
    getattr(importlib.import_module(module), name)(**job.get("arguments", {}))
    return 0


def child_main(job: dict[str, Any], output: int) -> None:
    status = 1
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        status = perform(job)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def run_job(port: int, job: dict[str, Any]) -> None:
    """Fork, stream what the child prints, and report its status."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        child_main(job, writer)
    os.close(writer)
    deadline = time.monotonic() + job["timeout"]
    beat = time.monotonic()
    status = None
    while status is None:
        forward(port, reader, 0.1)
        if time.monotonic() > beat + HEARTBEAT_SECONDS:
            send(port, output="")
            beat = time.monotonic()
        ended, raw = os.waitpid(pid, os.WNOHANG)
        if ended:
            status = os.waitstatus_to_exitcode(raw)
        elif time.monotonic() > deadline:
            send(port, output=describe(pid))
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            status = TIMED_OUT
    while forward(port, reader, 0):
        pass
    os.close(reader)
    send(port, status=status)


def forward(port: int, reader: int, seconds: float) -> bool:
    """Pass one piece of output on; False when there is none now."""
    if not select.select([reader], [], [], seconds)[0]:
        return False
    data = os.read(reader, 1 << 16)
    if data:
        send(port, output=data.decode(errors="replace"))
    return bool(data)


def main() -> None:
    port = open_port()
    open_to_all(__file__, sys.executable, sys.prefix + "/x", sys.base_prefix + "/x")
    send(port, ready=float(Path("/proc/uptime").read_text().split()[0]))
    pending = b""
    while True:
        data = os.read(port, 1 << 16)
        if not data:
            return
        pending += data
        while b"\n" in pending:
            line, _, pending = pending.partition(b"\n")
            job = json.loads(line)
            if job.get("quit"):
                return
            run_job(port, job)


if __name__ == "__main__":
    main()
