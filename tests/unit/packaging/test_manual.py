"""The man page and the shells' completions, as generated."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys

import pytest

from tests.support.packaging_tools import PACKAGING, load
from vmm.command import usage
from vmm.settings import memory
from vmm.settings.config import PREFIX, SETTINGS

SECTIONS = [
    "NAME", "SYNOPSIS", "DESCRIPTION", "VERBS", "OPTIONS", "ENVIRONMENT", "KEYS", "SIGNALS",
    "FILES", "EXIT STATUS", "EXAMPLES", "LIMITS", "SEE ALSO",
]  # fmt: skip
FUNCTION = "_vllmd_hypervisor"


@functools.cache
def generated(what: str) -> str:
    return subprocess.run(
        [sys.executable, str(PACKAGING / "manual.py"), what],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip


def shell(name: str) -> str:
    if shutil.which(name) is None:
        assert os.environ.get("VLLMD_TEST_LAB") != "1", f"apt-get install {name}"
        pytest.skip(f"needs {name} (apt-get install {name})")
    return name


def output(words: list[str], folder, **more: str) -> set[str]:
    env = {"XDG_RUNTIME_DIR": str(folder), "PATH": "/usr/bin:/bin", "HOME": str(folder), **more}
    told = subprocess.run(words, env=env, cwd=folder, check=True, capture_output=True, text=True)
    assert told.stderr == ""
    return set(told.stdout.split("\n")) - {""}


@pytest.fixture
def instances(tmp_path):
    """A folder with two instances, one of them with a lock, and a file."""
    for name in ("vm1", "no-lock"):
        (tmp_path / "vllmd-hypervisor" / name).mkdir(parents=True)
    (tmp_path / "vllmd-hypervisor/vm1/lock").touch()
    (tmp_path / "user-data").touch()
    return tmp_path


def man_page() -> str:
    """As it is read, on lines of 200."""
    if not shutil.which("man"):
        pytest.skip("needs man")
    told = subprocess.run(
        ["man", "--warnings", "-E", "ascii", "-l", "-"], input=generated("man"),
        capture_output=True, text=True, check=False,
        env={**os.environ, "MANWIDTH": "200", "MAN_KEEP_FORMATTING": "", "MANPAGER": "cat"},
    )  # fmt: skip
    assert (told.returncode, told.stderr) == (0, "")
    return told.stdout


def test_the_man_page_has_every_section_in_order():
    lines = generated("man").splitlines()
    assert [line[4:] for line in lines if line.startswith(".SH ")] == SECTIONS
    assert [line for line in man_page().splitlines()[1:] if line and line[0] != " "][
        :-1
    ] == SECTIONS


def test_the_man_page_has_every_row_of_the_tables():
    text = man_page()
    for verb in usage.VERBS:
        assert text.count(verb.form()) >= 2
        assert all(option.meaning in text for option in verb.options)
    for setting in SETTINGS:
        assert PREFIX + setting.name in text
    for code, _ in usage.EXIT_CODES:
        assert f"\n       {code} " in text
    for key in ("Ctrl-A x", "Ctrl-A c", "Ctrl-A h", "Ctrl-A Ctrl-A", "SIGTERM, SIGINT", "SIGHUP"):
        assert f"\n       {key}" in text, key
    for path in ("/etc/vllmd/hypervisor-NAME.env", "/var/lib/vllmd/", "state.json"):
        assert path in text


def test_the_man_page_has_every_key_of_memory_config():
    told = load("manual_text").MEMORY_KEYS
    assert sorted(told) == sorted(memory.KEYS)
    text = man_page()
    defaults = memory.parse_memory("size=64M")
    for key, (values, meaning) in told.items():
        assert f"{key}={values}" in text
        if key in memory.SWITCHES:
            assert meaning.endswith(f"Default: {'on' if getattr(defaults, key) else 'off'}")


def test_the_examples_are_commands_of_ours():
    """Every verb and setting in them exists, and they keep what quoting they have."""
    text = man_page()
    for line in text[text.index("\nEXAMPLES") : text.index("\nLIMITS")].splitlines():
        words = line.split()
        if words[:1] == ["vllmd-hypervisor"]:
            assert usage.find_verb(words[1]), line
        for word in words:
            if word.startswith(PREFIX):
                name = word.partition("=")[0].removeprefix(PREFIX)
                assert name in [setting.name for setting in SETTINGS], line
    assert "printf '#cloud-config\\nssh_authorized_keys: [%s]\\n' \"$(cat ~/.ssh/" in text


@pytest.mark.parametrize(
    ("typed", "offered", "not_offered"),
    [
        ("", {"start", "stop", "status", "env", "seed", "--help", "--version"}, {"vm1"}),
        ("sta", {"start", "status"}, {"stop"}),
        ("start --d", {"--dry-run"}, {"--json"}),
        ("status ", {"vm1", "--json", "--help"}, {"no-lock", "--now"}),
        ("seed u", {"user-data"}, {"vllmd-hypervisor"}),
        ("dump ", {"vm1", "user-data", "--live"}, {"no-lock", "--now"}),
        ("check ", {"--json"}, {"vm1", "user-data"}),
    ],
)
def test_bash(instances, typed, offered, not_offered):
    words = ["vllmd-hypervisor", *typed.split(" ")]
    script = generated("bash") + (
        f"COMP_WORDS=({' '.join(repr(word) for word in words)}); COMP_CWORD={len(words) - 1}\n"
        f'{FUNCTION}; printf "%s\\n" "${{COMPREPLY[@]}}"\n'
    )
    found = output(["bash", "-c", script], instances)
    assert offered <= found
    assert not found & not_offered
    assert all(word.startswith(words[-1]) for word in found)


@pytest.mark.parametrize(
    ("typed", "offered", "not_offered"),
    [
        ("", {"start", "stop", "status", "env", "seed"}, {"vm1", "user-data"}),
        ("sta", {"start", "status"}, {"stop"}),
        ("start --d", {"--dry-run"}, {"--json"}),
        ("status ", {"vm1"}, {"no-lock", "user-data"}),
        ("status --", {"--json", "--help"}, {"--now"}),
        ("seed u", {"user-data"}, {"vllmd-hypervisor/"}),
        ("check ", set(), {"vm1", "user-data"}),
    ],
)
def test_fish(instances, typed, offered, not_offered):
    script = f"{generated('fish')}\ncomplete -C 'vllmd-hypervisor {typed}'"
    env = {"XDG_CONFIG_HOME": str(instances), "XDG_DATA_HOME": str(instances)}
    lines = output([shell("fish"), "--no-config", "-c", script], instances, **env)
    found = {line.split("\t")[0] for line in lines}
    assert offered <= found
    assert not found & not_offered


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("", {"start:run the VM in the foreground",
              r"--version:show the version; --verbose\: what is inside"}),
        ("status ", {"--json[print JSON]", "--help[what it takes]",
                     f"1:instance:{FUNCTION}_names"}),
        ("seed ", {"--help[what it takes]", "*:file:_files"}),
    ],
)  # fmt: skip
def test_zsh(instances, typed, offered):
    """What it hands to zsh's own functions, which ask the terminal; and the names of instances."""
    words = ["vllmd-hypervisor", *typed.split(" ")]
    script = (
        "_describe() { print -rl -- $verbs }; _arguments() { print -rl -- $@ }\n"
        "compadd() { shift; print -rl -- ${(P)1} }\n"
        f"words=({' '.join(repr(word) for word in words)}); CURRENT={len(words)}\n"
    )
    found = output([shell("zsh"), "-f", "-c", script + generated("zsh")], instances)
    assert offered <= found
    names = generated("zsh").rpartition(f'{FUNCTION} "$@"')[0] + f"{FUNCTION}_names"
    assert output([shell("zsh"), "-f", "-c", script + names], instances) == {"vm1"}


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_every_verb_and_flag_is_completed(name):
    text = generated(name)
    for verb in usage.VERBS:
        assert verb.name in text
        for option in verb.options:
            assert option.flag.split()[0].lstrip("-") in text
    done = subprocess.run(
        [shell(name), "-n"], input=text, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
