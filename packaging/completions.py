"""Completions for bash, zsh and fish, from the command line's grammar."""

from __future__ import annotations

from vmm.command import usage
from vmm.command.usage import PROGRAM, Verb

FUNCTION = "_" + PROGRAM.replace("-", "_")
# Folders of instances, with a lock in each: this user's, and the system service's.
INSTANCES = f"""\
{FUNCTION}_instances() {{
    local base=${{XDG_RUNTIME_DIR:-/run}} lock
    for base in "$base/{PROGRAM}" /run/vllmd; do
        [ -d "$base" ] && find "$base" -maxdepth 4 -path "*/{PROGRAM}/*/lock" 2>/dev/null
    done | while read -r lock; do
        lock=${{lock%/lock}}
        echo "${{lock##*/}}"
    done
}}
"""


def with_value() -> list[str]:
    """Flags of every verb that a file's path follows."""
    return [option.flag for option in usage.GENERAL if option.value]


def flags(verb: Verb) -> list[str]:
    """All that a verb takes."""
    return [*[option.flag for option in verb.options], *with_value(), "--help"]


def bash() -> str:
    """For bash: verbs, their flags, the names of instances, files."""
    rows = []
    for verb in usage.VERBS:
        names = f" $({FUNCTION}_instances)" if verb.named else ""
        paths = " paths=1" if verb.files else ""
        rows.append(f'        {verb.name}) words="{" ".join(flags(verb))}{names}"{paths} ;;')
    verbs = " ".join(
        [*[verb.name for verb in usage.VERBS], *[option.flag for option in usage.GENERAL]]
    )
    cases = "\n".join(rows)
    before = "|".join(with_value()) or "--no-such"
    return f"""\
# bash completion for {PROGRAM}
{INSTANCES}\
{FUNCTION}() {{
    local words="" paths="" current=${{COMP_WORDS[COMP_CWORD]}}
    case ${{COMP_CWORD}}:${{COMP_WORDS[1]}} in
        1:*) words="{verbs}" ;;
    esac
    [ "$COMP_CWORD" -gt 1 ] && case ${{COMP_WORDS[1]}} in
{cases}
    esac
    case ${{COMP_WORDS[COMP_CWORD - 1]}} in
        {before}) words="" paths=1 ;;
    esac
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
    if [ "$paths" ]; then
        compopt -o filenames 2>/dev/null
        mapfile -t -O "${{#COMPREPLY[@]}}" COMPREPLY < <(compgen -f -- "$current")
    fi
}}
complete -F {FUNCTION} {PROGRAM}
"""


def zsh() -> str:
    """For zsh: the same, with meanings."""
    rows = []
    for verb in usage.VERBS:
        words = [f"'{option.flag}[{_zsh(option.meaning)}]'" for option in verb.options]
        words += [f"'{name}[more settings]:file:_files'" for name in with_value()]
        words += ["'--help[what it takes]'"]
        words += [f"'1:instance:{FUNCTION}_names'"] if verb.named else []
        words += ["'*:file:_files'"] if verb.files else []
        rows.append(f"        {verb.name}) _arguments {' '.join(words)} ;;")
    described = [f"'{verb.name}:{_zsh(verb.meaning)}'" for verb in usage.VERBS]
    described += [f"'{option.flag}:{_zsh(option.meaning)}'" for option in usage.GENERAL]
    verbs, cases = "\n        ".join(described), "\n".join(rows)
    return f"""\
#compdef {PROGRAM}
{INSTANCES}\
{FUNCTION}_names() {{
    local -a names
    names=(${{(f)"$({FUNCTION}_instances)"}})
    compadd -a names
}}
{FUNCTION}() {{
    local -a verbs
    verbs=(
        {verbs}
    )
    if (( CURRENT == 2 )); then
        _describe verb verbs
        return
    fi
    local verb=$words[2]
    shift words
    (( CURRENT-- ))
    case $verb in
{cases}
    esac
}}
{FUNCTION} "$@"
"""


def _zsh(text: str) -> str:
    for char in "[]:":
        text = text.replace(char, f"\\{char}")
    return text.replace("'", "'\\''")


def fish() -> str:
    """For fish: the same, with meanings."""
    head = f"complete -c {PROGRAM}"
    lines = [f"# fish completion for {PROGRAM}", f"function {FUNCTION}_instances"]
    lines.append("    set -l base /run")
    lines.append("    set -q XDG_RUNTIME_DIR; and set base $XDG_RUNTIME_DIR")
    lines.append(f"    for lock in $base/{PROGRAM}/*/lock /run/vllmd/*/{PROGRAM}/*/lock")
    lines += ["        basename (dirname $lock)", "    end", "end", f"{head} -f"]
    for verb in usage.VERBS:
        lines.append(f"{head} -n __fish_use_subcommand -a {verb.name} -d {_fish(verb.meaning)}")
        seen = f"{head} -n '__fish_seen_subcommand_from {verb.name}'"
        for option in verb.options:
            lines.append(f"{seen} -l {option.flag[2:]} -d {_fish(option.meaning)}")
        lines += [f"{seen} -a '({FUNCTION}_instances)'"] if verb.named else []
        lines += [f"{seen} -F"] if verb.files else []
    for option in usage.GENERAL:
        takes = " -r -F" if option.value else ""
        lines.append(f"{head} -l {option.flag[2:]}{takes} -d {_fish(option.meaning)}")
    return "\n".join(lines) + "\n"


def _fish(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
