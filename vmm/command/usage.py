"""The grammar of the command line, once: parsing, --help, the man page and shell completion use it.

A table and a small parser in place of argparse, which takes 7 ms to import.
"""

from __future__ import annotations

from vmm import PROGRAM
from vmm.errors import UsageError
from vmm.host.keys import KEYS
from vmm.light.printable import brief, quote
from vmm.light.record import Record
from vmm.settings.config import PREFIX, REQUIRED, SETTINGS

SUMMARY = "a KVM virtual machine monitor for inference VMs"
NAME = "NAME"
COLUMNS = 79


class Option(Record):
    """A flag; ``value`` names what follows it, empty for nothing."""

    __slots__ = ("flag", "meaning", "value")
    flag: str
    meaning: str
    value: str

    def __init__(self, flag: str, meaning: str, value: str = "") -> None:
        self._set(flag=flag, meaning=meaning, value=value)

    def form(self) -> str:
        """As it is typed."""
        return f"{self.flag} {self.value}".rstrip()


class Verb(Record):
    """A verb with its flags; ``named`` when an instance's name may follow it.

    ``files``: the paths it takes, in order; those in brackets may be left out.
    """

    __slots__ = ("files", "meaning", "name", "named", "options")
    name: str
    meaning: str
    named: bool
    options: tuple[Option, ...]
    files: tuple[str, ...]

    def __init__(
        self,
        name: str,
        meaning: str,
        named: bool = False,
        options: tuple[Option, ...] = (),
        files: tuple[str, ...] = (),
    ) -> None:
        self._set(name=name, meaning=meaning, named=named, options=options, files=files)

    def form(self) -> str:
        """As it is typed: ``stop [NAME] [--now]``."""
        words = [self.name, *([f"[{NAME}]"] if self.named else []), *self.files]
        return " ".join([*words, *[f"[{option.flag}]" for option in self.options]])


JSON = Option("--json", "print JSON")
VERBS = (
    Verb(
        "start",
        "run the VM in the foreground",
        options=(
            Option("--dry-run", "check the settings, start nothing"),
            Option("--json", "with --dry-run: print JSON"),
            Option("--timing", "tell on stderr what the start's phases took"),
        ),
    ),
    Verb(
        "stop",
        "shut the guest down, and wait for it",
        named=True,
        options=(Option("--now", "do not wait for the guest: kill it"),),
    ),
    Verb("status", "tell how the VM does, or how it ended", named=True, options=(JSON,)),
    Verb("list", "show all instances, running or ended", options=(JSON,)),
    Verb(
        "dump",
        "write RAM and registers as an ELF core",
        named=True,
        options=(Option("--live", "let the guest run meanwhile: parts may not fit together"),),
        files=("FILE",),
    ),
    Verb(
        "forget",
        "remove what is left of an ended VM",
        named=True,
        options=(Option("--all", "of all that do not run"),),
    ),
    Verb("check", "tell what a start lacks, and what cures it", options=(JSON,)),
    Verb(
        "env",
        "show every setting, and where it came from",
        options=(JSON, Option("--unit", "print what a systemd unit may give to the VM")),
    ),
    Verb(
        "seed",
        "make a cidata image for cloud-init",
        files=("USER-DATA", "META-DATA", "[NETWORK-CONFIG]", "FILE"),
    ),
)
ENV_FILE = "--env-file"
GENERAL = (
    Option(ENV_FILE, "more settings, from FILE; the environment wins", "FILE"),
    Option("--help", "show this, or with a verb what it takes"),
    Option("--version", "show the version; --verbose: what is inside"),
)
VERBOSE = "--verbose"
EXIT_CODES = (
    ("0", "the guest powered itself off; status: running; stop: as told"),
    ("1", "the VMM failed"),
    ("2", "bad settings, or a kernel that cannot be booted"),
    ("3, 4", "not running; not known"),
    ("31", "out of bounds"),
    ("33", "the guest crashed"),
    ("34", "a device failed"),
    ("35", "the guest panicked"),
    ("36", "it did nothing but reset"),
    ("37", "it was killed"),
    ("38", "no KVM, too little memory"),
    ("39", "instance or image in use"),
)


class Request(Record):
    """What was asked for: a verb's name, or --help or --version (with a verb, its help).

    ``env_files``: files with settings, in their order; ``files``: the paths that the verb takes.
    """

    __slots__ = ("env_files", "files", "flags", "name", "verb")
    verb: str
    name: str | None
    flags: tuple[str, ...]
    files: tuple[str, ...]
    env_files: tuple[str, ...]

    def __init__(
        self,
        verb: str,
        name: str | None = None,
        flags: tuple[str, ...] = (),
        files: tuple[str, ...] = (),
        env_files: tuple[str, ...] = (),
    ) -> None:
        self._set(verb=verb, name=name, flags=flags, files=files, env_files=env_files)


def parse(arguments: list[str]) -> Request:
    """Understand a command line; UsageError says what is wrong and what there is."""
    arguments, env_files = _take_env_files(arguments)
    if not arguments:
        raise UsageError(f"a verb is needed: {_names()}")
    verb = find_verb(arguments[0])
    if verb is None:
        if arguments[0] in ("-h", "--help", "help"):
            return Request("--help")
        if arguments[0] == "--version":
            return Request("--version", flags=_verbose(arguments[1:]))
        raise UsageError(f"{quote(arguments[0])} is no verb; there are: {_names()}")
    known = [option.flag for option in verb.options]
    flags: list[str] = []
    words: list[str] = []
    most = len(verb.files) + verb.named
    for word in arguments[1:]:
        if word in ("-h", "--help"):
            return Request("--help", verb.name)
        if word in known:
            flags.append(word)
        elif word.startswith("-"):
            raise UsageError(f"{verb.name} knows no {brief(word)}; it takes: {verb.form()}")
        elif len(words) == most:
            raise UsageError(f"{quote(word)} is one word too many; it takes: {verb.form()}")
        else:
            words.append(word)
    # The paths come last: one word more than those is the name.
    name = words.pop(0) if verb.named and len(words) > len(verb.files) else None
    if len(words) < len([each for each in verb.files if each[0] != "["]):
        raise UsageError(f"{verb.name} needs more words; it takes: {verb.form()}")
    return Request(verb.name, name, tuple(flags), tuple(words), tuple(env_files))


def _verbose(words: list[str]) -> tuple[str, ...]:
    """What may follow --version."""
    if words not in ([], [VERBOSE]):
        raise UsageError(f"--version knows no {brief(words[-1])}; it takes: [{VERBOSE}]")
    return tuple(words)


def _take_env_files(arguments: list[str]) -> tuple[list[str], list[str]]:
    """(the other words, the files that ``--env-file FILE`` or ``--env-file=FILE`` names)."""
    others: list[str] = []
    files: list[str] = []
    words = iter(arguments)
    for word in words:
        option, separator, path = word.partition("=")
        if option != ENV_FILE:
            others.append(word)
            continue
        path = path if separator else next(words, "")
        if not path:
            raise UsageError(f"{ENV_FILE} needs the path of a file")
        files.append(path)
    return others, files


def find_verb(name: str | None) -> Verb | None:
    """The verb of this name, or None."""
    for verb in VERBS:
        if verb.name == name:
            return verb
    return None


def _names() -> str:
    return ", ".join([verb.name for verb in VERBS])


def help_text(verb_name: str | None = None) -> str:
    """All of it on one screen of 24 x 80, or one verb."""
    verb = find_verb(verb_name)
    if verb is not None:
        rows = [f"usage: {PROGRAM} {verb.form()}", f"  {verb.meaning}"]
        if verb.named:
            rows.append(f"  {NAME:10} the instance (else found from the environment)")
        rows += [f"  {option.flag:10} {option.meaning}" for option in verb.options]
        rows.append(f"  {GENERAL[0].form()} {GENERAL[0].meaning}")
        if verb.name == "start":
            rows.append("Keys, where stdin is a terminal (all others are the guest's):")
            rows += [f"  {key:14} {meaning}" for key, meaning in KEYS]
        return "\n".join(rows)
    rows = [f"{PROGRAM}: {SUMMARY}", ""]
    for each in VERBS:
        form = f"  {each.form():29}"
        row = f"{form}  {each.meaning}"
        rows += [row] if len(row) <= COLUMNS else [form, f"{'':33}{each.meaning}"]
    rows += [f"  {option.form():30} {option.meaning}" for option in GENERAL]
    rows += ["", f"Settings are variables, {PREFIX}...; `env` shows all. Required:"]
    rows.append("  " + ", ".join([each.name for each in SETTINGS if each.default == REQUIRED]))
    return "\n".join(rows + _exit_rows())


def _exit_rows() -> list[str]:
    """The exit codes as running text."""
    rows = ["Exit codes:"]
    for number, (code, meaning) in enumerate(EXIT_CODES):
        word = f" {code} {meaning}" + (";" if number + 1 < len(EXIT_CODES) else "")
        if len(rows[-1]) + len(word) > COLUMNS:
            rows.append(" ")
        rows[-1] += word
    return rows
