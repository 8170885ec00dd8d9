"""What files and programs that set environments are known to do to names and values. Pure."""

from __future__ import annotations

from vmm.errors import SETTING_PREFIX as PREFIX
from vmm.light.printable import brief
from vmm.settings.parse import is_decimal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

# Passed on as it is.
VERBATIM = ("CMDLINE",)
# Lists of paths, in which double quotes have a meaning of their own.
PATH_LISTS = ("SYSTEM_IMAGE_FILEPATH", "CONFIG_IMAGE_FILEPATH", "LOG_FILEPATH")
PROTOCOLS = ("TCP", "UDP", "SCTP")
PORT_PARTS = ("PROTO", "PORT", "ADDR")
HOST_SUFFIX = "SERVICE_HOST"


def unwrap(name: str, text: str, warnings: list[str]) -> str:
    """A setting's value without what was not meant as part of it; ``warnings`` tell the rest."""
    short = name.removeprefix(PREFIX)
    if text.rstrip("\r\n") != text:
        warnings.append(f"{name}: a line end was removed from the value (a file from Windows?)")
        text = text.rstrip("\r\n")
    if short in VERBATIM:
        if text[:1] == text[-1:] and text[:1] in "\"'" and len(text) > 1:
            warnings.append(f"{name}: the value is quoted; the quotes are passed on as they are")
        return text
    if text != text.strip():
        warnings.append(f"{name}: blanks at the value's ends were removed")
        text = text.strip()
    bare = unquote(text)
    if bare != text and short in PATH_LISTS and text[0] == '"' and "," in bare:
        if ",/" in bare:
            warnings.append(
                f"{name}: the quotes around all of the value make it one path, with its commas"
            )
    elif bare != text:
        warnings.append(f"{name}: quotes around the value were removed (docker keeps them)")
        text = bare
    if " #" in text:
        warnings.append(f"{name}: ' #' in a value starts no comment; it is part of the value")
    return text


def unquote(text: str) -> str:
    """Without one pair of quotes around all of it."""
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" and text[0] not in text[1:-1]:
        return text[1:-1]
    return text


def service_variables(names: Iterable[str]) -> list[str]:
    """Those that Kubernetes sets for a service whose name begins as our prefix does.

    A service ``vllmd-hypervisor`` gives each container of its namespace SERVICE_HOST,
    SERVICE_PORT, PORT, PORT_80_TCP_ADDR and more, behind the service's name in capitals.
    """
    ours = [name for name in names if name.startswith(PREFIX)]
    services = [PREFIX]
    services += [name[: -len(HOST_SUFFIX)] for name in ours if name.endswith(f"_{HOST_SUFFIX}")]
    return [name for name in ours if any(_of_service(name, service) for service in services)]


def _of_service(name: str, service: str) -> bool:
    if not name.startswith(service):
        return False
    words = name[len(service) :].split("_")
    if words[0] == "SERVICE":
        return words[1:] == ["HOST"] or words[1:2] == ["PORT"]
    if words[0] != "PORT":
        return False
    if len(words) == 1:
        return True
    port = len(words) in (3, 4) and is_decimal(words[1]) and words[2] in PROTOCOLS
    return port and all(word in PORT_PARTS for word in words[3:])


def service_warning(names: list[str]) -> str:
    """The warning about them."""
    return (
        f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: ignored: Kubernetes "
        "sets such variables for a service of this name; rename the service, or set "
        "enableServiceLinks: false in the pod"
    )


def exported(name: str) -> str:
    """The problem of a name with the shell's ``export`` before it."""
    return f"'{brief(name)}': an EnvironmentFile takes no 'export'; remove the word"
