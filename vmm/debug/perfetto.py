"""A trace as a file for ui.perfetto.dev: Chrome's trace events as JSON.

Each vCPU is a track of complete events ("ph": "X"): the time in the guest, then that in the VMM,
named by the exit. Written piece by piece: memory does not grow with the trace.
Source: "Trace Event Format", the public description of Chrome's JSON format.
"""

from __future__ import annotations

import json
import os
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from vmm.debug.tracesummary import named
from vmm.errors import HostError
from vmm.light.freshfile import fresh_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from vmm.debug.exitnames import ExitNames
    from vmm.debug.tracerecord import Array

PID = 1
# Records that are made into text at once.
PIECE = 1 << 11
TRUTH = {False: "false", True: "true"}
# Of one record. Numbers of 64 bits are text: JavaScript's have 53.
EVENTS = (
    f',\n{{"ph":"X","name":"guest","cat":"guest","pid":{PID},"tid":%d,"ts":%.3f,"dur":%.3f}}'
    f',\n{{"ph":"X","name":%s,"cat":"vmm","pid":{PID},"tid":%d,"ts":%.3f,"dur":%.3f,'
    '"args":{"address":"%#x","data":"%#x","size":%d,"write":%s,"rip":"%#x"}}'
)


def write(
    path: Any,
    title: str,
    chunks: Iterable[Array],
    names: ExitNames,
    facts: Callable[[], dict[str, object]],
) -> int:
    """Write ``chunks`` (tracerecord.FIELDS) to ``path``; the number of records.

    ``facts``, asked at the end, go into the file as they are (numbers and text). HostError, and
    nothing is left, when it cannot be written.
    """
    path = os.fspath(path)
    try:
        with fresh_file(path) as fd, open(fd, "w", encoding="utf-8", closefd=False) as file:
            return _write(file, title, chunks, names, facts)
    except OSError as error:
        raise HostError(
            f"cannot write the trace {path}: {os.strerror(error.errno or 0)}",
            "give it a folder that is there, with room for 300 bytes an exit",
        ) from error


def _write(
    file: IO[str],
    title: str,
    chunks: Iterable[Array],
    names: ExitNames,
    facts: Callable[[], dict[str, object]],
) -> int:
    records = 0
    file.write('{"displayTimeUnit":"ns","traceEvents":[\n')
    file.write(json.dumps(_meta("process_name", 0, title)))
    vcpus: set[int] = set()
    for chunk in chunks:
        for start in range(0, len(chunk), PIECE):
            piece = chunk[start : start + PIECE]
            new = set(piece["vcpu"].tolist()) - vcpus
            _write_tracks(file, new)
            vcpus |= new
            file.writelines(_events(piece, names))
        records += len(chunk)
    other = {**facts(), "records": records}
    file.write('\n],"otherData":' + json.dumps(other) + "}\n")
    return records


def _meta(name: str, tid: int, text: str) -> dict[str, object]:
    return {"ph": "M", "pid": PID, "tid": tid, "name": name, "args": {"name": text}}


def _write_tracks(file: IO[str], vcpus: set[int]) -> None:
    for vcpu in sorted(vcpus):
        file.write(",\n" + json.dumps(_meta("thread_name", vcpu + 1, f"vCPU {vcpu}")))


def _events(piece: Array, names: ExitNames) -> Iterator[str]:
    kinds, codes = named(piece, names)
    quoted = [json.dumps(kind) for kind in kinds]
    # Where two processors' TSCs differ, a time may be less than none.
    guest, vmm = (np.maximum(piece[name], 0) / 1e3 for name in ("guest_ns", "vmm_ns"))
    begin = (piece["ts_ns"] - np.maximum(piece["guest_ns"], 0)) / 1e3
    at = piece["ts_ns"] / 1e3
    tid = (piece["vcpu"] + 1).tolist()
    seen = [piece[name].tolist() for name in ("address", "data", "size")]
    write = [TRUTH[value] for value in piece["is_write"].tolist()]
    called = [quoted[code] for code in codes.tolist()]
    rows = zip(
        tid, begin.tolist(), guest.tolist(), called, tid, at.tolist(), vmm.tolist(), *seen,
        write, piece["rip"].tolist(), strict=True,
    )  # fmt: skip
    return map(EVENTS.__mod__, rows)
