"""CPU_PLACEMENT: processors, node, exits and the hint, by form alone."""

from __future__ import annotations

import pytest

from vmm.settings.config import PREFIX, survey
from vmm.settings.parse import BadValue
from vmm.settings.placement import AUTO, Placement, parse_placement


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("cpus=2-5,8", Placement((2, 3, 4, 5, 8))),
        ("cpus= 8, 3 - 4 ,node=auto", Placement((8, 3, 4), AUTO)),
        ("node=0,cpus=1", Placement((1,), 0)),
        ("exits=hlt+mwait+pause+hlt", Placement(exits=("hlt", "mwait", "pause"))),
        ("cpus=0,exits=cstate,realtime=on", Placement((0,), None, ("cstate",), True)),
        ("realtime=off", Placement()),
    ],
)
def test_what_is_understood(text, found):
    assert parse_placement(text) == found


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("cpus=1-3,2", "processor 2 is named twice"),
        ("cpus=3-1", "'1' is not a whole number from 3"),
        ("cpus=8192", "0 to 8191"),
        ("cpus=", "'cpus' has no value"),
        ("cpus=1,,2", "an item of the list is empty"),
        ("2-5", "unknown key '2-5'"),
        ("node=0,1", "unknown key '1'"),
        ("node=near", "'near' is not a whole number"),
        ("node=1024", "0 to 1023"),
        ("node=0,node=0", "node is given twice"),
        ("exits=halt", "unknown word 'halt' (did you mean hlt?)"),
        ("exits=hlt,mwait", "unknown key 'mwait'"),
        ("realtime=maybe", "neither on nor off"),
        ("realtime=on", "it needs cpus="),
        ("cpu=1", "did you mean cpus"),
    ],
)
def test_what_is_refused(text, why):
    with pytest.raises(BadValue) as caught:
        parse_placement(text)
    assert why in str(caught.value)


def test_the_setting_names_itself():
    _, _, problems = survey({f"{PREFIX}CPU_PLACEMENT": "exits=halt"})
    (told,) = [text for name, text in problems if name == f"{PREFIX}CPU_PLACEMENT"]
    assert "CPU_PLACEMENT=exits=halt: exits: unknown word 'halt'" in told
    assert "exits=hlt+mwait+pause+cstate" in told
