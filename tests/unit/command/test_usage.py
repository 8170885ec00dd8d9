"""The command line's grammar."""

from __future__ import annotations

import pytest

from vmm.command import usage
from vmm.errors import UsageError


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
        (["--version", "--verbose"], "--version", None, ("--verbose",)),
        (["seed", "a", "b", "c"], "seed", None, ()),
    ],
)
def test_what_is_understood(words, verb, name, flags):
    asked = usage.parse(words)
    assert (asked.verb, asked.name, asked.flags) == (verb, name, flags)


@pytest.mark.parametrize(
    ("words", "files"),
    [
        (["start", "--env-file", "/a"], ("/a",)),
        (["--env-file=/a", "status", "vm1", "--env-file", "b=c"], ("/a", "b=c")),
        (["check", "--json"], ()),
    ],
)
def test_files_with_settings(words, files):
    assert usage.parse(words).env_files == files


@pytest.mark.parametrize("verb", usage.VERBS, ids=lambda verb: verb.name)
def test_every_verb_takes_a_file_with_settings(verb):
    assert usage.parse([verb.name, *verb.files, "--env-file", "/a"]).env_files == ("/a",)
    assert "--env-file FILE" in usage.help_text(verb.name)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["start", "--env-file"], "--env-file needs the path of a file"),
        (["start", "--env-file="], "--env-file needs the path of a file"),
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
