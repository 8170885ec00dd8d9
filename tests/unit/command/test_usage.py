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
        (["seed", "a", "b", "c"], "seed", None, ()),
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
