"""The parts of an attachment as others see them, for types alone."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    from vmm.machine import Machine
    from vmm.run.eventloop import EventLoop

    class Owner(Protocol):
        """All that are attached to one machine."""

        loop: EventLoop
        machine: Machine
        tracer: Asker | None

        def hold(self, session: Asker) -> None:
            """Let the guest stand still for that one."""

        def holds(self, session: Asker) -> bool:
            """Whether the guest stands still for that one."""

        def let_go(self, session: Asker) -> None:
            """That one needs it no more."""

        def ended(self, session: Asker) -> None:
            """That one has closed its connection."""

    class Asker(Protocol):
        """One that is attached, as the answers to his requests need him."""

        machine: Machine
        name: str
        owner: Owner
        rings: list[Any]
        write: bool

    Answer = tuple[dict[str, Any], bytes]
