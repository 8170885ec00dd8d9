"""The command line's grammar, and what is generated from it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vmm.command import usage
from vmm.errors import UsageError
from vmm.settings.config import PREFIX, SETTINGS

MANUAL = Path(__file__).resolve().parents[3] / "packaging/manual.py"


def generated(what: str) -> str:
    return subprocess.run(
        [sys.executable, str(MANUAL), what], check=True, capture_output=True, text=True
    ).stdout


@pytest.mark.parametrize(
    ("words", "verb", "name", "flags"),
    [
        (["start"], "start", None, ()),
        (["start", "--dry-run", "--json"], "start", None, ("--dry-run", "--json")),
        (["stop", "--now", "vm1"], "stop", "vm1", ("--now",)),
        (["status", "vm1"], "status", "vm1", ()),
        (["stop", "--help"], "--help", "stop", ()),
        (["-h"], "--help", None, ()),
        (["--version"], "--version", None, ()),
    ],
)
def test_what_is_understood(words, verb, name, flags):
    asked = usage.parse(words)
    assert (asked.verb, asked.name, asked.flags) == (verb, name, flags)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "a verb is needed: start"),
        (["begin"], "'begin' is no verb"),
        (["start", "vm1"], "'vm1' is one word too many"),
        (["stop", "a", "b"], "'b' is one word too many"),
        (["status", "--now"], "status knows no --now; it takes: status [NAME] [--json]"),
    ],
)
def test_what_is_refused(words, told):
    with pytest.raises(UsageError, match=".") as caught:
        usage.parse(words)
    assert told in str(caught.value)
    assert caught.value.exit_code == 2


def test_help_fits_a_screen_and_names_all():
    text = usage.help_text()
    lines = text.splitlines()
    assert len(lines) < 24
    assert max(map(len, lines)) < 80
    for verb in usage.VERBS:
        assert verb.form() in text
        assert verb.meaning in text
        assert verb.form() in usage.help_text(verb.name)


def test_help_of_start_lists_the_keys():
    text = usage.help_text("start")
    for key, meaning in usage.KEYS:
        assert key in text
        assert meaning in text


def test_the_man_page_has_everything():
    text = generated("man").replace("\\-", "-")
    for verb in usage.VERBS:
        assert verb.form() in text
    for setting in SETTINGS:
        assert PREFIX + setting.name in text
    for key, meaning in usage.KEYS:
        assert key in text
        assert meaning.replace("'", "\\(aq") in text
    if shutil.which("man"):
        told = subprocess.run(
            ["man", "--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z", "-"],
            input=generated("man"), capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert told.stderr == ""


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("", {"start", "stop", "status", "env", "--help", "--version"}),
        ("sta", {"start", "status"}),
        ("start --d", {"--dry-run"}),
        ("status ", {"vm1", "--json", "--help"}),
    ],
)
def test_completion(tmp_path, typed, offered):
    (tmp_path / "vllmd-hypervisor/vm1").mkdir(parents=True)
    (tmp_path / "vllmd-hypervisor/vm1/lock").touch()
    words = ["vllmd-hypervisor", *typed.split(" ")]
    script = generated("completion") + (
        f"COMP_WORDS=({' '.join(repr(word) for word in words)}); COMP_CWORD={len(words) - 1}\n"
        '_vllmd_hypervisor; printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    told = subprocess.run(
        ["bash", "-c", script], env={"XDG_RUNTIME_DIR": str(tmp_path), "PATH": "/usr/bin:/bin"},
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    found = set(told.stdout.split())
    assert offered <= found
    assert all(word.startswith(words[-1]) for word in found)
