"""Fills {names} in the words of a command, an environment or a file's text.

Only a lower-case name in braces is one: JSON's own braces need no care. A list inside a command
is a group: it is left out where one of its names has no value, as `-initrd {initramfs}` is for a
guest without one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

NAME = re.compile(r"\{([a-z][a-z0-9_]*)\}")
Word = str | tuple[str, ...]


class TemplateError(ValueError):
    """A name that nobody knows, or that has no value where one is needed."""


def names(text: str) -> set[str]:
    """All names in a text."""
    return set(NAME.findall(text))


def parts(word: Word) -> tuple[str, ...]:
    """The texts of a word, which may be a group."""
    return (word,) if isinstance(word, str) else word


def uses(words: Sequence[Word], name: str) -> bool:
    """Whether a command has this name anywhere."""
    return any(name in names(part) for word in words for part in parts(word))


def fill(text: str, values: Mapping[str, str | None], what: str) -> str:
    """The text with values; TemplateError says what is unknown or has none."""
    for name in sorted(names(text)):
        if name not in values:
            known = ", ".join(f"{{{known}}}" for known in sorted(values))
            raise TemplateError(f"{what}: {{{name}}} is unknown; there are {known}")
        if values[name] is None:
            raise TemplateError(
                f"{what}: {{{name}}} has no value in this measurement (give it `{name}`, or put"
                " the words that use it into a list of their own, which is then left out)"
            )
    return NAME.sub(lambda found: str(values[found[1]]), text)


def fill_command(words: Sequence[Word], values: Mapping[str, str | None], what: str) -> list[str]:
    """The words of a command, without the groups that lack a value."""
    filled: list[str] = []
    for word in words:
        if isinstance(word, str):
            filled.append(fill(word, values, what))
        elif all(values.get(name, "") is not None for part in parts(word) for name in names(part)):
            filled += [fill(part, values, what) for part in word]
    return filled


def fill_environment(
    environment: Mapping[str, str], values: Mapping[str, str | None], what: str
) -> dict[str, str]:
    """The variables, without those that lack a value."""
    return {
        key: fill(text, values, f"{what}, {key}")
        for key, text in environment.items()
        if all(values.get(name, "") is not None for name in names(text))
    }
