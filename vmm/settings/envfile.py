r"""Files with settings, in the grammar of systemd's EnvironmentFile= (systemd.exec(5)).

A line is ``NAME=VALUE``; lines that begin with # or ; are comments. A value may be in single or
double quotes, in several pieces; a backslash takes the next character as it is (in double quotes
only one of \ " ` $), and before a line's end it joins the next line. Nothing is expanded.
Stricter than systemd, which passes over in silence what is wrong.
"""

from __future__ import annotations

from vmm.errors import ConfigError
from vmm.light.printable import brief, quote
from vmm.settings.config import FileEnvironment
from vmm.settings.traps import exported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

FILE_MAX = 1 << 20
BLANKS = " \t"
COMMENTS = "#;"
ESCAPED_IN_QUOTES = '"\\`$'
DIGITS = "0123456789"
NAME_CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_" + DIGITS


def with_files(environment: Mapping[str, str], paths: Sequence[str]) -> FileEnvironment:
    """``environment`` and the variables of files: a later file wins, the environment over all.

    ConfigError tells everything that is wrong in the files, with file and line.
    """
    values: dict[str, str] = {}
    origins: dict[str, str] = {}
    problems: list[str] = []
    for path in paths:
        reader = _Reader(path, _read(path))
        for name, value, line in reader.assignments():
            values[name] = value
            origins[name] = f"{path}:{line}"
        problems += reader.problems
    if problems:
        raise ConfigError(problems)
    origins = {name: place for name, place in origins.items() if name not in environment}
    return FileEnvironment({**values, **environment}, origins)


def _read(path: str) -> str:
    """The file's text; bytes that are no UTF-8 as Python has them in its environment."""
    try:
        with open(path, "rb") as file:
            content = file.read(FILE_MAX + 1)
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise ConfigError([f"--env-file {brief(path)}: {why}"]) from error
    if len(content) > FILE_MAX:
        raise ConfigError([f"--env-file {brief(path)}: more than {FILE_MAX >> 20} MiB of settings"])
    text = content.decode(errors="surrogateescape").removeprefix("\ufeff")
    return text.replace("\r\n", "\n").replace("\r", "\n")


class _Reader:
    """One file, read character by character as systemd does it."""

    def __init__(self, path: str, text: str) -> None:
        self._path = path
        self._text = text
        self._place = 0
        self._line = 1
        self.problems: list[str] = []

    def assignments(self) -> list[tuple[str, str, int]]:
        """(name, value, line) of everything that is right; the rest goes to ``problems``."""
        found = []
        while self._place < len(self._text):
            line = self._line
            self._blanks("\n")
            if self._next() in COMMENTS:
                self._comment()
                continue
            line = self._line
            name = self._until("=\n").strip(BLANKS)
            if self._next() != "=":
                if name:
                    self._wrong(line, f"{quote(name)} is not NAME=VALUE")
                continue
            self._take()
            value = self._value(line)
            if self._good(name, value, line):
                found.append((name, value, line))
        return found

    def _good(self, name: str, value: str, line: int) -> bool:
        if name.startswith("export "):
            self._wrong(line, exported(name))
        elif not name or name[0] in DIGITS or any(c not in NAME_CHARACTERS for c in name):
            self._wrong(line, f"{quote(name)} is not a variable's name")
        elif "\0" in name + value:
            self._wrong(line, f"{name}: a value cannot contain a NUL character")
        else:
            return True
        return False

    def _wrong(self, line: int, text: str) -> None:
        self.problems.append(f"{brief(self._path)}:{line}: {text}")

    def _next(self) -> str:
        return self._text[self._place : self._place + 1] or "\n"

    def _take(self) -> str:
        char = self._text[self._place : self._place + 1]
        self._place += 1
        self._line += char == "\n"
        return char

    def _blanks(self, more: str = "") -> None:
        while self._place < len(self._text) and self._next() in BLANKS + more:
            self._take()

    def _until(self, ends: str) -> str:
        start = self._place
        while self._next() not in ends:
            self._take()
        return self._text[start : self._place]

    def _comment(self) -> None:
        """To the line's end; a backslash before that makes the next line part of it."""
        while self._next() != "\n":
            if self._take() == "\\":
                self._take()

    def _value(self, line: int) -> str:
        """Pieces, quoted or bare, up to the end of the line that nothing joins."""
        pieces: list[str] = []
        while True:
            self._blanks()
            char = self._next()
            if char == "\n":
                return "".join(pieces)
            if char not in "\"'":
                return "".join([*pieces, self._bare()])
            self._take()
            piece = self._quoted(char)
            if piece is None:
                self._wrong(line, f"the quote {char} is not closed")
                return ""
            pieces.append(piece)

    def _bare(self) -> str:
        """The rest of the line, without blanks at its end; quotes are nothing special in it."""
        text = ""
        kept = 0
        while self._next() != "\n":
            char = self._take()
            if char == "\\":
                char = self._take()
                text += char if char != "\n" else ""
                kept = len(text)
                continue
            text += char
        return text[:kept] + text[kept:].rstrip(BLANKS)

    def _quoted(self, mark: str) -> str | None:
        """Up to the closing quote, over lines; None without one."""
        text = ""
        while self._place < len(self._text):
            char = self._take()
            if char == mark:
                return text
            if char == "\\" and mark == '"':
                char = self._take()
                if char == "\n":
                    continue
                if char not in ESCAPED_IN_QUOTES:
                    text += "\\"
            text += char
        return None
