"""Inside the lab: where the vCPUs of an instance are, however long ago its guest booted."""

from __future__ import annotations

import json
from collections.abc import Callable

from vmm.run.control import ask


class Vcpus:
    """Asks one instance, found by what ``status`` returns: its `status --json`, asked for once."""

    def __init__(self, status: Callable[[], str]) -> None:
        self._status = status
        self._path = ""

    def reports(self, pid: int | str) -> list[str]:
        """One report for each vCPU of the process; empty when it does not tell.

        The socket is looked up in the process' own root, which may be another than ours.
        """
        try:
            self._path = self._path or json.loads(self._status())["sockets"]["control"]
            told = ask(f"/proc/{pid}/root{self._path}", {"command": "vcpus"})
        except (ValueError, KeyError, TypeError, OSError):
            return []
        return [str(report) for report in told.get("vcpus", [])]
