"""The errors people see: each names the thing, the value and the remedy, and has an exit code."""

from __future__ import annotations

from errno import EAGAIN, EIO, EMFILE, ENFILE, ENOMEM

SETTING_PREFIX = "VLLMD_HYPERVISOR_"
# Why a file does not open that is there and ours: nobody's setting is to blame.
HOST_LACKS = (EMFILE, ENFILE, ENOMEM, EAGAIN, EIO)


def setting_of(problem: str) -> str | None:
    """The variable that a problem is about: by our rule its text begins with the name."""
    name, _, _ = problem.partition("=")
    name = name.partition(" ")[0].partition(":")[0]
    return name if name.startswith(SETTING_PREFIX) else None


def about(setting: str, error: VmmError) -> VmmError:
    """The same error, beginning with the variable whose value it is about."""
    return type(error)(f"{SETTING_PREFIX}{setting}: {error.problem}", error.remedy)


class VmmError(Exception):
    """Base: something failed at run time. ``remedy`` says what helps; exit code 1."""

    exit_code = 1

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(f"{problem} ({remedy})" if remedy else problem)
        self.problem = problem
        self.remedy = remedy


class ConfigError(VmmError):
    """Bad settings, all of them at once: one line a problem. Exit code 2."""

    exit_code = 2

    def __init__(self, problems: list[str] | tuple[str, ...]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class UsageError(VmmError):
    """A command line that cannot be understood. Exit code 2."""

    exit_code = 2


class UnknownInstanceError(VmmError):
    """No instance of that name is known. Exit code 4."""

    exit_code = 4


class NotRunningError(VmmError):
    """The instance does not run. Exit code 3."""

    exit_code = 3


class GuestError(VmmError):
    """The payload cannot be booted (a bad kernel, too little RAM for it). Exit code 2."""

    exit_code = 2


class CrashError(VmmError):
    """The guest cannot go on: triple fault outside a reset, internal error. Exit code 33."""

    exit_code = 33


class HostError(VmmError):
    """The host cannot do it: no KVM, too little memory or huge pages. Exit code 38."""

    exit_code = 38


class StateError(VmmError):
    """A saved state does not fit: it is damaged, or of another machine or version. Exit code 2."""

    exit_code = 2


class BusyError(VmmError):
    """A name, an image or a device is in use. Exit code 39."""

    exit_code = 39


def __getattr__(name: str) -> object:
    """IoctlError on first use, so that importing this module loads nothing native."""
    if name == "IoctlError":
        from vmm._native.host.fd import IoctlError

        return IoctlError
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
