"""Writes the man page, from what --help and the settings are made of, and the text beside it.

python packaging/manual.py man >vllmd-hypervisor.8
python packaging/manual.py bash >vllmd-hypervisor       (or zsh, fish: the shell's completion)
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import completions
import manual_text as text

from vmm import __version__
from vmm.command import usage
from vmm.settings.config import PREFIX, REQUIRED, SETTINGS

SECTION = 8


def roff(words: str) -> str:
    """Text with roff's special characters made plain."""
    words = words.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")
    words = words.replace("^", "\\(ha").replace("~", "\\(ti").replace("`", "\\(ga")
    return "\n".join([f"\\&{line}" if line[:1] == "." else line for line in words.split("\n")])


def tagged(head: str, words: str) -> list[str]:
    """A paragraph with a bold head."""
    return [".TP", f".B {roff(head)}", roff(words)]


def section(title: str, rows: tuple[tuple[str, str], ...]) -> list[str]:
    """A section of paragraphs with bold heads."""
    lines = [f".SH {title}"]
    for head, words in rows:
        lines += tagged(head, words)
    return lines


def verbs() -> list[str]:
    """What each verb does, and its flags."""
    lines = [".SH VERBS"]
    for verb in usage.VERBS:
        lines += tagged(verb.form(), f"{verb.meaning}.")
        for option in verb.options:
            lines += [".RS", *tagged(option.flag, option.meaning), ".RE"]
    return lines


def environment() -> list[str]:
    """All settings, and the keys of the one that has some."""
    lines = [".SH ENVIRONMENT"]
    for setting in SETTINGS:
        default = "required" if setting.default == REQUIRED else f"default: {setting.default}"
        words = f"{setting.meaning}: {setting.form}"
        words = f"{words} ({default})" if setting.default else words
        lines += tagged(PREFIX + setting.name, words)
        if setting.name == "MEMORY_CONFIG":
            for key, (values, meaning) in text.MEMORY_KEYS.items():
                lines += [".RS", *tagged(f"{key}={values}", f"{meaning}."), ".RE"]
    words = "Where the folders of instances are; else /run/user/UID, for root /run."
    return lines + tagged("XDG_RUNTIME_DIR", words)


def examples() -> list[str]:
    """Commands to copy."""
    lines = [".SH EXAMPLES"]
    for title, commands in text.EXAMPLES:
        lines += [".PP", roff(title), ".PP", ".RS 4", ".EX", roff(commands), ".EE", ".RE"]
    return lines


def man() -> str:
    """The man page."""
    program = usage.PROGRAM
    lines = [
        f'.TH {program.upper()} {SECTION} "" "{program} {__version__}"',
        ".SH NAME", f"{roff(program)} \\- {roff(usage.SUMMARY)}", ".SH SYNOPSIS",
    ]  # fmt: skip
    for verb in usage.VERBS:
        lines += [f".B {roff(program)}", roff(verb.form()), ".br"]
    lines += [".SH DESCRIPTION", *map(roff, text.DESCRIPTION)]
    lines += verbs()
    lines += section("OPTIONS", tuple([(each.form(), each.meaning) for each in usage.GENERAL]))
    lines += environment()
    lines += section("KEYS", keys()) + section("SIGNALS", text.SIGNALS)
    lines += section("FILES", text.FILES) + section("EXIT STATUS", usage.EXIT_CODES)
    lines += [*examples(), ".SH LIMITS"]
    lines += [line for paragraph in text.LIMITS for line in (".PP", roff(paragraph))]
    return "\n".join([*lines, ".SH SEE ALSO", roff(text.SEE_ALSO)]) + "\n"


def keys() -> tuple[tuple[str, str], ...]:
    """The keys, each with its meaning as a sentence."""
    return tuple([(key, f"{meaning[0].upper()}{meaning[1:]}.") for key, meaning in usage.KEYS])


WRITERS = {
    "man": man,
    "bash": completions.bash,
    "zsh": completions.zsh,
    "fish": completions.fish,
}


if __name__ == "__main__":
    sys.stdout.write(WRITERS[sys.argv[1]]())
