"""How a run ends: the guest's own end as an exit code, and when a guest is not started again."""

from __future__ import annotations

from vmm.errors import VmmError
from vmm.log.hub import get_logger

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmm.run.outcome import Outcome

log = get_logger(__name__)

# By the native half, at once: a thread made a system call that is not its kind's.
EXIT_CONFINED = 31
EXIT_CRASH = 33
EXIT_DEVICE = 34
EXIT_PANIC = 35
EXIT_RESETS = 36
EXIT_KILLED = 37
# A machine that resets sooner than this after its start makes the next start wait, ever longer.
EARLY_SECONDS = 2.0
RESET_DELAYS = (0.0, 0.0, 0.1, 0.5, 1.0, 5.0)
# So many triple faults right after the start in a row: this guest cannot run.
EARLY_FAULTS_MAX = 3
# So many resets of that kind, which take half a minute with the waits in between.
EARLY_RESETS_MAX = 10


class Ending:
    """How the run ends: exit code, and the reason in words."""

    def __init__(self, code: int, reason: str) -> None:
        self.code = code
        self.reason = reason


def ending_of(outcome: Outcome, lived: float, failed_device: str) -> Ending:
    """The end of a guest that is not started again, told in the log.

    ``lived`` is its age in seconds; ``failed_device`` names the device because of which it was
    told to shut down, if any.
    """
    if outcome.kind in ("reset", "shutdown"):
        log.info(f"{outcome.reason} after {lived:.1f} s")
        if failed_device:
            return Ending(EXIT_DEVICE, f"{outcome.reason}, as the device {failed_device} failed")
        return Ending(0, outcome.reason)
    log.error(f"the guest cannot go on: {outcome.reason}\n{outcome.report}")
    codes = {"crash": EXIT_CRASH, "panic": EXIT_PANIC}
    return Ending(codes.get(outcome.kind, VmmError.exit_code), outcome.reason)


class ResetPolicy:
    """Remembers how soon after their starts the machines of one run were reset."""

    def __init__(self) -> None:
        self._early_resets = 0
        self._early_faults = 0

    def refuse(self, outcome: Outcome, lived: float) -> Ending | None:
        """The end of a guest that does nothing but fault or reset; None when it may start again.

        One that lived longer once is counted anew.
        """
        early = lived < EARLY_SECONDS
        self._early_resets = self._early_resets + 1 if early else 0
        self._early_faults = self._early_faults + 1 if early and outcome.report else 0
        if self._early_faults >= EARLY_FAULTS_MAX:
            return _cannot_run(outcome, self._early_faults, EXIT_CRASH)
        if self._early_resets >= EARLY_RESETS_MAX:
            return _cannot_run(outcome, self._early_resets, EXIT_RESETS)
        return None

    def delay(self) -> float:
        """Seconds to wait before the next start."""
        return RESET_DELAYS[min(self._early_resets, len(RESET_DELAYS) - 1)]


def _cannot_run(outcome: Outcome, times: int, code: int) -> Ending:
    within = f"within {EARLY_SECONDS:.0f} s of its start, {times} times in a row"
    log.error(f"the guest cannot run: {outcome.reason} {within}\n{outcome.report}".rstrip())
    return Ending(code, f"{outcome.reason}, right after each start, {times} times in a row")
