"""Which functions of a script can stand behind an access: checked when they are given."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

READ_ARGUMENTS, WRITE_ARGUMENTS = 3, 4


def check_functions(
    read: Callable[..., Any] | None, write: Callable[..., Any] | None, read_arguments: int
) -> None:
    """ValueError unless both, where given, can be called as accesses are."""
    if read is not None:
        check_function(read, read_arguments, "read=")
    if write is not None:
        check_function(write, WRITE_ARGUMENTS, "write=")


def check_function(function: object, count: int, what: str) -> None:
    """ValueError unless it can be called with so many arguments."""
    wanted = "(cpu, address, size)" if count == READ_ARGUMENTS else "(cpu, address, value, size)"
    if not callable(function):
        raise ValueError(f"{what} {function!r}: a function of {wanted} is needed")
    try:
        inspect.signature(function).bind(*range(count))
    except TypeError as error:
        raise ValueError(f"{what} {function!r} cannot be called with {wanted}: {error}") from None
    except ValueError:
        return  # a builtin that does not tell


def is_read(function: object) -> bool:
    """What a decorated function is, by its arguments: of reads, or (else ValueError) of writes."""
    if _arguments_of(function) == READ_ARGUMENTS:
        return True
    check_function(function, WRITE_ARGUMENTS, "a hook")
    return False


def _arguments_of(function: object) -> int:
    """How many positional arguments it takes, -1 where that is not fixed."""
    if not callable(function):
        return -1
    kinds = [p.kind for p in inspect.signature(function).parameters.values()]
    fixed = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return len(kinds) if all(kind in fixed for kind in kinds) else -1
