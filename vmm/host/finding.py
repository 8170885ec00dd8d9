"""What a check of the host found out, and what cures it."""

from __future__ import annotations

from vmm.errors import BusyError, ConfigError, HostError
from vmm.light.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vmm.errors import VmmError

OK = "ok"
WARNING = "warning"
PROBLEM = "problem"


class Finding(Record):
    """One thing that was looked at. Pure data; any thread.

    ``name`` says which check it is and never changes; ``subject`` is what was looked at. ``cure``
    holds shell commands, to be run in this order (``as_root``: by root), ``advice`` is for people.
    ``code`` is the exit code that `start` ends with because of a problem, else 0.
    """

    __slots__ = ("advice", "as_root", "code", "cure", "found", "level", "name", "subject")
    name: str
    subject: str
    level: str
    found: str
    cure: tuple[str, ...]
    as_root: bool
    advice: str
    code: int

    def __init__(
        self,
        name: str,
        found: str,
        subject: str = "",
        level: str = OK,
        cure: Sequence[str] = (),
        advice: str = "",
        as_root: bool = True,
        code: int = 0,
    ) -> None:
        self._set(
            name=name,
            subject=subject,
            level=level,
            found=found,
            cure=tuple(cure),
            as_root=bool(cure) and as_root,
            advice=advice,
            code=code,
        )

    @property
    def remedy(self) -> str:
        """Cure and advice on one line."""
        commands = "; ".join(self.cure)
        if self.as_root:
            commands = f"as root: {commands}"
        return "; ".join([part for part in (commands, self.advice) if part])

    @property
    def line(self) -> str:
        """What was found with its remedy, as an error has it."""
        return f"{self.found} ({self.remedy})" if self.remedy else self.found


def warning(name: str, found: str, subject: str = "", **more: object) -> Finding:
    """Something that a start survives, and its user may not want."""
    return Finding(name, found, subject, WARNING, **more)  # type: ignore[arg-type]


def problem(name: str, found: str, subject: str = "", **more: object) -> Finding:
    """Something that a start fails of: the host's fault, unless ``code`` says otherwise."""
    return Finding(name, found, subject, PROBLEM, **{"code": HostError.exit_code, **more})  # type: ignore[arg-type]


def of_error(name: str, error: VmmError, subject: str = "") -> Finding:
    """The finding that an error is."""
    return problem(name, error.problem, subject, advice=error.remedy, code=error.exit_code)


def refuse(findings: Iterable[Finding]) -> None:
    """Raise what the problems among ``findings`` amount to, all of them told at once.

    ConfigError when one of them is the settings' fault, else HostError, else BusyError.
    """
    problems = [finding for finding in findings if finding.level == PROBLEM]
    if not problems:
        return
    code = min([finding.code for finding in problems])
    lines = [finding.line for finding in problems]
    if code == ConfigError.exit_code:
        raise ConfigError(lines)
    raise (BusyError if code == BusyError.exit_code else HostError)("\n".join(lines))
