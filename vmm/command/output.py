"""What the command prints: stdout for results, stderr for complaints, whatever is in the text."""

from __future__ import annotations

import os
import sys

from vmm import PROGRAM
from vmm.errors import VmmError
from vmm.light.printable import escape

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def say(text: str) -> None:
    """Print to stdout, whatever is in the text. Raises VmmError, or BrokenPipeError."""
    if sys.stdout is not None:
        # Under a locale with few characters the others are escaped as well.
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
        write_out(escape(text) + "\n")


def print_json(facts: dict[str, Any]) -> None:
    """JSON on stdout."""
    from vmm.light.jsontext import dumps

    say(dumps(facts, 2))


def write_out(text: str = "") -> None:
    """Write ``text`` and what has been printed before. Raises VmmError, or BrokenPipeError."""
    try:
        if sys.stdout is not None:
            if text:
                sys.stdout.write(text)  # which writes at once where PYTHONUNBUFFERED is set
            sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        drop_output()
        raise VmmError(f"stdout: the output cannot be written: {error.strerror}") from error


def complain(lines: list[str]) -> None:
    """Lines on stderr, past Python's buffer: what nobody takes in time is lost, no more."""
    from vmm.log.stream import tell

    tell(2, "".join([f"{PROGRAM}: {escape(line)}\n" for line in lines]))


def drop_output() -> None:
    """Let the rest go nowhere; the interpreter would try once more when it ends, and complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), 1)
