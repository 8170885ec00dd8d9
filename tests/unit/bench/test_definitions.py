"""A definitions file: everything wrong is told at once, with what would be right."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from tests.unit.bench.fake import contender, question, write
from vmm.bench import definitions, running, template
from vmm.bench.kinds.registry import KINDS
from vmm.errors import ConfigError

ROOT = Path(__file__).resolve().parents[3]
EXAMPLE = ROOT / "vmm/bench/example.toml"


def problems(path: Path, **variables: str) -> str:
    with pytest.raises(ConfigError) as caught:
        definitions.read(path, variables)
    return str(caught.value)


@pytest.mark.parametrize("path", [EXAMPLE, ROOT / "benchmarks/definitions.toml"])
def test_the_files_that_we_give_are_right(path):
    found = definitions.read(path, {})
    assert found.contenders
    assert found.measurements
    told = running.commands(found)
    assert "wrong:" not in told
    assert "TINY-GUEST" in told


def test_the_example_shows_every_kind():
    text = EXAMPLE.read_text()
    shown = {line.split('"')[1] for line in text.splitlines() if "kind = " in line}
    assert shown == set(KINDS)
    # What stands behind # in the list of measurements is right as well.
    head, _, kinds = text.partition("# The kinds of")
    whole = (
        head
        + "".join(
            f"{line.removeprefix('# ')}\n" for line in kinds.splitlines() if line[:3] != "# b"
        ).partition("\n")[2]
    )
    tomllib.loads(whole)


def test_every_problem_is_told_at_once(tmp_path):
    path = write(
        tmp_path,
        [contender("a", "x", envs={}, optional="yes"), contender("a", "y"), {"command": [1]},
         contender("b", "x", prefault={"on": "x"}, timing={"pattern": "("}),
         contender("c", "x", timing={"pattern": "(", "unit": "ms"}), {"name": "d", "command": []},
         contender("e", "x", timing={"pattern": "x", "unit": "h"})],
        [question("first-bite"), question(memory="12", rounds=0), question(contenders=["f"]),
         question("boot"), question("figures", figures=[{"name": "x", "pattern": "("}]),
         question("jitter", count="many", name="second", hello=1)],
        baseline="z", formatt=1,
    )  # fmt: skip
    told = problems(path, nothing="x")
    for words in (
        "contender[0]: `optional` must be true or false, not 'yes'",
        "contender[0]: `envs` is unknown here; there are: name, command, env",
        "two contenders are called 'a'",
        "contender[2]: `name` is missing: it must be text",
        "contender[2]: `command`: a word must be text or a list of texts, not 1",
        "contender[3]: `prefault` must have off and on, not ['on']",
        "contender[3]: `timing` must have pattern and unit, not ['pattern']",
        "contender[4]: `timing.pattern` is no regular expression: missing )",
        "contender[5]: `command` must have words",
        "contender[6]: `timing.pattern` must have the groups (?P<name>...) and (?P<time>...)",
        "contender[6]: `timing.unit` must be one of s, ms, us, ns, not 'h'",
        "measurement[0]: `kind` 'first-bite' does not exist; there are first-byte, exit-cost, boot",
        "measurement[1]: `rounds` must be between 1 and 10000, not 0",
        "measurement[2]: `contenders`: 'f' is not defined; there are a, a, ?, b, c, d, e",
        "measurement[3]: `stamps` is missing",
        "measurement[4].figures[0]: `pattern` is no regular expression: ",
        "measurement[5]: `count` must be a whole number, not 'many'",
        "measurement[5]: `hello` is unknown here; there are: name, kind, memory",
        "`baseline` 'z' is no contender; there are a, a, ?, b, c, d, e",
        "two measurements are called 'first-byte'",
        "`formatt` is unknown here",
        "--set nothing: the file has these variables: none",
    ):
        assert words in told, words


def test_what_is_no_such_file(tmp_path):
    assert "No such file or directory; name a TOML or JSON file" in problems(tmp_path / "none.toml")
    path = tmp_path / "broken.toml"
    path.write_text("[[[")
    assert f"{path} is no TOML: " in problems(path)
    path = tmp_path / "list.json"
    path.write_text("[]")
    assert "must be a table, not []" in problems(path)
    path.write_text(json.dumps({"contender": [], "measurement": []}))
    assert "there is no [[measurement]]" in problems(path)
    path.write_text(json.dumps({"format": 2, "measurement": [question()]}))
    assert "`format` is 2; this program reads 1" in problems(path)


def test_a_file_that_would_leave_its_folder_is_refused(tmp_path):
    path = write(tmp_path, [contender("a", "x", files={"../../etc/x": {"size": "1M"}})], [])
    assert "a file's name must not have a folder" in problems(path)


def test_a_guest_has_one_serial_port(tmp_path):
    path = write(tmp_path, [contender("a", "x", "-s", "{serial}", terminal=True)], [question()])
    assert "contender[0]: `terminal` or {serial}, not both" in problems(path)


def test_variables_of_the_file_and_of_the_command(tmp_path):
    path = write(tmp_path, [], [question()], variables={"a": "{here}/x", "b": "y"})
    assert definitions.read(path, {"b": "z"}).variables == {"a": "{here}/x", "b": "z"}


def test_names_are_filled_and_groups_without_a_value_left_out():
    values = {"kernel": "k", "disk": None, "cpus": "2"}
    words = ("vmm", '{"cpus": {cpus}}', ("--disk", "path={disk}"), ("-k", "{kernel}"))
    assert template.fill_command(words, values, "x") == ["vmm", '{"cpus": 2}', "-k", "k"]
    assert template.fill_environment({"A": "{disk}", "B": "{cpus}"}, values, "x") == {"B": "2"}
    with pytest.raises(
        template.TemplateError, match=r"x: \{kernl\} is unknown; there are \{cpus\}"
    ):
        template.fill_command(("{kernl}",), values, "x")
    with pytest.raises(template.TemplateError, match=r"unknown"):
        template.fill_command((("{kernl}",),), values, "x")
    with pytest.raises(template.TemplateError, match=r"\{disk\} has no value in this measurement"):
        template.fill_command(("{disk}",), values, "x")


def test_narrowed_to_what_is_asked_for(tmp_path):
    path = write(
        tmp_path, [contender("a", "x"), contender("b", "y")], [question(), question("memory")]
    )
    found = definitions.read(path, {})
    some = running.narrowed(found, ["memory", "b"], 7)
    assert [one.name for one in some.measurements] == ["memory"]
    assert [one.name for one in some.contenders] == ["b"]
    assert some.measurements[0].rounds == 7
    with pytest.raises(ConfigError, match="--only c: there are first-byte, memory, a, b"):
        running.narrowed(found, ["c"], None)
    with pytest.raises(ConfigError, match="at least 1"):
        running.narrowed(found, [], 0)
