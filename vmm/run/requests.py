"""What may be asked of an instance by its control socket, and the answers."""

from __future__ import annotations

from vmm.run.status import STOPPING

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    from vmm.run.attach import door
    from vmm.run.control import Keep

    class Run(door.Run, Protocol):
        """What is needed of the run that is asked."""

        def request_stop(self, reason: str, now: bool = False) -> None:
            """Ask the guest to shut down."""

        def status(self) -> dict[str, Any]:
            """Everything `status` shows."""


KNOWN = "status, stop, vcpus, attach"


def answer(run: Run, request: dict[str, Any]) -> dict[str, Any] | Keep:
    """The answer to one request. Control thread."""
    command = request.get("command")
    if command == "status":
        return run.status()
    if command == "stop":
        if run.state != STOPPING or request.get("now") is True:
            run.request_stop("stop requested", now=request.get("now") is True)
        return {"state": run.state, "timeout_s": run.config.stop_timeout_seconds}
    if command == "vcpus":
        return {"vcpus": run.machine.snapshots() if run.machine is not None else []}
    if command == "attach":
        from vmm.run.attach.door import attach

        return attach(run, request)
    told = repr(command[:20]) if isinstance(command, str) else f"a {type(command).__name__}"
    return {"error": f"unknown command {told}; known: {KNOWN}"}
