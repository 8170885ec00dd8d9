"""Lets in whoever wants to look at a running guest, and knows who holds it.

A hold lasts as long as the connection of the one who asked for it, and never beyond a request to
stop. Everything here belongs to the control thread.
"""

from __future__ import annotations

from functools import partial

from vmm import __version__
from vmm.errors import HostError
from vmm.light.teardown import try_all
from vmm.log.hub import get_logger
from vmm.run.attach.session import Session
from vmm.run.attach.wire import PROTOCOL
from vmm.run.control import Keep
from vmm.run.status import STOPPING

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    from vmm.machine import Machine
    from vmm.run.attach.parts import Asker
    from vmm.run.eventloop import EventLoop
    from vmm.settings.config import Config

    class Run(Protocol):
        """What is needed of the run whose guest is looked at."""

        attached: Attachments | None
        config: Config
        loop: EventLoop
        machine: Machine | None
        state: str


log = get_logger(__name__)

SESSIONS_MAX = 4
# So long one vCPU may take to leave the guest; nothing else is served meanwhile.
HOLD_MS = 300


def attach(run: Run, request: dict[str, Any]) -> dict[str, Any] | Keep:
    """The answer to a request to attach: a refusal, or the connection is kept."""
    if request.get("protocol") != PROTOCOL:
        return refusal(
            f"it runs version {__version__}, whose guests are attached to by protocol {PROTOCOL}, "
            f"not {str(request.get('protocol'))[:20]}",
            f"attach with version {__version__}",
        )
    if not run.config.attach:
        return refusal(
            "it is locked down: nobody looks at its guest from outside",
            "start it with VLLMD_HYPERVISOR_ATTACH=on",
        )
    if run.machine is None:
        return refusal("the guest is just rebooting", "try again in a moment")
    if run.config.gdb is not None:
        return refusal(
            "it was started for gdb (VLLMD_HYPERVISOR_GDB), which alone may drive its guest",
            "use gdb, or start it without",
        )
    if run.attached is None:
        run.attached = Attachments(run.machine, run.loop)
        run.attached.may_hold = run.state != STOPPING
    attached = run.attached
    if attached.count >= SESSIONS_MAX:
        return {**refusal(f"{SESSIONS_MAX} are attached already", "end one of them"), "busy": True}
    write = request.get("write") is True
    return Keep(lambda fd: attached.take(fd, write))


def refusal(problem: str, remedy: str) -> dict[str, Any]:
    """An error as the other end shows it."""
    return {"error": problem, "remedy": remedy}


class Attachments:
    """All that are attached to one machine, until close()."""

    def __init__(self, machine: Machine, loop: EventLoop) -> None:
        self.machine = machine
        self.loop = loop
        self.may_hold = True
        self._sessions: list[Session] = []
        self._holders: list[Asker] = []
        # Who has its exits traced: a vCPU has but one ring.
        self.tracer: Asker | None = None

    @property
    def count(self) -> int:
        """How many are attached."""
        return len(self._sessions)

    def status(self) -> dict[str, object]:
        """Facts for `status`."""
        return {"clients": len(self._sessions), "holding": len(self._holders)}

    def take(self, fd: int, write: bool) -> None:
        """A connection that is ours from now on."""
        session = Session(fd, write, self)
        self._sessions.append(session)
        session.greet()

    def hold(self, session: Asker) -> None:
        """Let the guest stand still for that one. HostError when it does not."""
        if not self.may_hold:
            raise HostError("the guest is being stopped", "it cannot be held any more")
        if session in self._holders:
            return
        if not self._holders:
            self._hold_all()
        self._holders.append(session)
        log.info(f"{session.name} holds the guest")

    def _hold_all(self) -> None:
        for vcpu in self.machine.vcpus:
            if not vcpu.hold(HOLD_MS):
                for each in self.machine.vcpus:
                    each.let_go()
                raise HostError(
                    f"vCPU {vcpu.index} does not leave the guest", "it may just be ending: again"
                )

    def holds(self, session: Asker) -> bool:
        """Whether the guest stands still for that one."""
        return session in self._holders

    def let_go(self, session: Asker) -> None:
        """That one needs it no more; when nobody does the guest goes on. Idempotent."""
        if session not in self._holders:
            return
        self._holders.remove(session)
        log.info(f"{session.name} lets the guest go")
        if not self._holders:
            self._release()

    def _release(self) -> None:
        vcpus = self.machine.vcpus
        # Else the guest takes the time for a processor of its own that hangs.
        steps = [vcpu.fd.kvmclock_ctrl for vcpu in vcpus]
        for error in try_all([*steps, *[vcpu.let_go for vcpu in vcpus]]):
            log.warning(f"a vCPU that was held: {error}")

    def hold_no_more(self, why: str) -> None:
        """The guest goes on for good: there is something that it has to do."""
        self.may_hold = False
        if self._holders:
            log.info(f"the guest is held no more: {why}")
            self._holders.clear()
            self._release()

    def ended(self, session: Asker) -> None:
        """That one has closed its connection."""
        self.let_go(session)
        self._sessions = [each for each in self._sessions if each is not session]

    def close(self, why: str = "the VMM has ended") -> None:
        """There is no machine any more: all are told, and nothing of it is used. Never fails."""
        self._holders.clear()
        for error in try_all([partial(each.end, why) for each in self._sessions]):
            log.warning(f"one that was attached: {error}")
