"""Writes the man page and the bash completion, from what --help and the settings are made of.

python packaging/manual.py man >vllmd-hypervisor.8
python packaging/manual.py completion >vllmd-hypervisor
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from vmm import __version__
from vmm.command import usage
from vmm.settings.config import PREFIX, REQUIRED, SETTINGS

SECTION = 8


def roff(text: str) -> str:
    """Text with roff's special characters made plain."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")
    return f"\\&{text}" if text.startswith(".") else text


def tagged(head: str, text: str) -> list[str]:
    """A paragraph with a bold head."""
    return [".TP", f".B {roff(head)}", roff(text)]


def man() -> str:
    """The man page."""
    program = usage.PROGRAM
    lines = [
        f'.TH {program.upper()} {SECTION} "" "{program} {__version__}"',
        ".SH NAME", f"{roff(program)} \\- {roff(usage.SUMMARY)}", ".SH SYNOPSIS",
    ]  # fmt: skip
    for verb in usage.VERBS:
        lines += [f".B {roff(program)}", roff(verb.form()), ".br"]
    lines += [".SH VERBS"]
    for verb in usage.VERBS:
        lines += tagged(verb.form(), f"{verb.meaning}.")
        for option in verb.options:
            lines += [".RS", *tagged(option.flag, option.meaning), ".RE"]
    lines += [".SH OPTIONS"]
    for option in usage.GENERAL:
        lines += tagged(option.flag, option.meaning)
    lines += [".SH ENVIRONMENT"]
    for setting in SETTINGS:
        default = "required" if setting.default == REQUIRED else f"default: {setting.default}"
        text = f"{setting.meaning}: {setting.form}"
        lines += tagged(PREFIX + setting.name, f"{text} ({default})" if setting.default else text)
    lines += [".SH EXIT STATUS"]
    for code, meaning in usage.EXIT_CODES:
        lines += tagged(code, meaning)
    return "\n".join(lines) + "\n"


def completion() -> str:
    """The bash completion: verbs, their flags, and the names of instances."""
    general = " ".join([option.flag for option in usage.GENERAL])
    rows = []
    for verb in usage.VERBS:
        words = " ".join([*[option.flag for option in verb.options], "--help"])
        names = " $(_vllmd_hypervisor_instances)" if verb.named else ""
        rows.append(f'        {verb.name}) words="{words}{names}" ;;')
    verbs = " ".join([verb.name for verb in usage.VERBS])
    cases = "\n".join(rows)
    return f"""\
# bash completion for {usage.PROGRAM}
_vllmd_hypervisor_instances() {{
    local base folder
    for base in "$XDG_RUNTIME_DIR" /run /run/vllmd /run/user/*; do
        for folder in "$base/{usage.PROGRAM}"/*/; do
            [ -e "$folder/lock" ] && basename "$folder"
        done
    done
}}
_vllmd_hypervisor() {{
    local words=""
    case ${{COMP_CWORD}}:${{COMP_WORDS[1]}} in
        1:*) words="{verbs} {general}" ;;
    esac
    [ "$COMP_CWORD" -gt 1 ] && case ${{COMP_WORDS[1]}} in
{cases}
    esac
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}")
}}
complete -F _vllmd_hypervisor {usage.PROGRAM}
"""


if __name__ == "__main__":
    sys.stdout.write({"man": man, "completion": completion}[sys.argv[1]]())
