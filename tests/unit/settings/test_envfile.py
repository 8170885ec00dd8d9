"""--env-file: systemd's grammar, whose values win, and errors with file and line."""

from __future__ import annotations

import pytest

from vmm.errors import ConfigError
from vmm.settings.config import PREFIX, Config, settings_in_use
from vmm.settings.envfile import with_files


def values(tmp_path, text: str | bytes, environment: dict[str, str] | None = None):
    path = tmp_path / "vm.env"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return with_files(environment or {}, [str(path)])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("A=b", {"A": "b"}),
        ("  A = b  \n", {"A": "b"}),
        ("# A=1\n; B=2\n\n \t\nC=3\n", {"C": "3"}),
        ("# joined \\\nA=1\nB=2", {"B": "2"}),
        ("A='b c' \nB=\"d e\"", {"A": "b c", "B": "d e"}),
        ('A="a\\"b\\$c\\d"', {"A": 'a"b$c\\d'}),
        ("A='a\\b'", {"A": "a\\b"}),
        ("A=a\\\nb\\ \nC=1", {"A": "ab ", "C": "1"}),
        ('A="a\\\nb\nc"', {"A": "ab\nc"}),
        ("A='a' \"b\"c", {"A": "abc"}),
        ('A=b "c" # d', {"A": 'b "c" # d'}),
        ("A=\r\nB=x\r\n", {"A": "", "B": "x"}),
        ("A=1\nA=2", {"A": "2"}),
        ("A=b=c", {"A": "b=c"}),
        ("\ufeffA=1", {"A": "1"}),
        (b"A=/\xff.img", {"A": "/\udcff.img"}),
        ("", {}),
    ],
)
def test_the_grammar(tmp_path, text, found):
    assert dict(values(tmp_path, text)) == found


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("A=1\nnonsense\n", ":2: 'nonsense' is not NAME=VALUE"),
        ("\nexport A=1", ":2: 'export A': an EnvironmentFile takes no 'export'"),
        ("A=1\nB='open\nC=3\n", ":2: the quote ' is not closed"),
        ("1A=1", ":1: '1A' is not a variable's name"),
        ("A-B=1", ":1: 'A-B' is not"),
        ("=1", ":1: '' is not"),
        ("A=\\\nb\nc", ":3: 'c' is not"),
        ("A=\0", ":1: A: a value cannot contain a NUL"),
    ],
)
def test_errors_name_file_and_line(tmp_path, text, told):
    with pytest.raises(ConfigError) as caught:
        values(tmp_path, text)
    assert f"{tmp_path}/vm.env{told}" in str(caught.value)


def test_all_errors_at_once(tmp_path):
    with pytest.raises(ConfigError) as caught:
        values(tmp_path, "a\nB=1\nc d=1\n")
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize("path", ["/nonexistent/x.env", "/tmp", "/dev/zero"])
def test_files_that_cannot_be_read(path):
    with pytest.raises(ConfigError, match=f"--env-file {path}: "):
        with_files({}, [path])


def test_the_environment_wins_and_a_later_file(tmp_path):
    for name, text in (("a", "A=1\nB=1\nC=1"), ("b", "B=2\nC=2")):
        (tmp_path / name).write_text(text)
    found = with_files({"C": "3"}, [str(tmp_path / "a"), str(tmp_path / "b")])
    assert found == {"A": "1", "B": "2", "C": "3"}
    assert found.origins == {"A": f"{tmp_path}/a:1", "B": f"{tmp_path}/b:1"}


def test_a_bad_value_and_an_unknown_name_are_found_in_their_file(tmp_path):
    found = values(tmp_path, f"# x\n{PREFIX}CPU_COUNT=many\n{PREFIX}CPUS=4\n")
    with pytest.raises(ConfigError) as caught:
        Config.from_env(found)
    told = "\n".join(caught.value.problems)
    assert f"({tmp_path}/vm.env:2)" in told
    assert f"({tmp_path}/vm.env:3)" in told
    sources = {name: source for name, _, source in settings_in_use(found)}
    assert sources[PREFIX + "CPU_COUNT"] == f"{tmp_path}/vm.env:2"
