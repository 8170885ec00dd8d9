"""Result files, tables, page, pictures, comparison: from the same values, and hostile names."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from benchmarks import guestcode as generator
from tests.unit.bench.fake import document, row
from vmm.bench import cli, compare, facts, guestcode, guests, markdown, output, page, pictures

from vmm.bench import results, summary, words  # isort: skip
from vmm.bench.kinds import jitter
from vmm.bench.kinds.kind import EDGES, histogram
from vmm.bench.stats import Interval
from vmm.errors import ConfigError, HostError

SLOW, FAST = [10.0, 11.0, 10.5, 9.8, 10.2, 10.9], [5.0, 5.2, 4.9, 5.1, 5.3, 4.8]
EVIL = "<script>alert(1)</script> | **x** [y](http://z)"


def three(**more: object) -> dict:
    return document(
        row("A", {"time": SLOW}), row("B", {"time": FAST}), {**row(EVIL, {}), "error": EVIL},
        row("A", {"time": [10.1, 10.8, 10.4, 9.9, 10.3, 10.7]}, True), **more,
    )  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _fonts():
    """matplotlib keeps its fonts' files open from the first picture on."""
    whole = three()
    whole["measurements"][0]["rows"][0]["histograms"] = {"late": histogram([0.5, 200.0])}
    list(pictures.draw(whole))


def saved(folder: Path, whole: dict, name: str = "r.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(whole))
    return path


def test_a_result_is_read_as_it_was_written(tmp_path):
    results.save(tmp_path / "r.json", three())
    assert results.load(tmp_path / "r.json") == three()
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda d: d.update(version=2), "has version 2; 1 is read here"),
        (lambda d: d.update(schema="x"), "no such schema"),
        (lambda d: d.update(measurements={}), "`measurements` must be of type list"),
        (lambda d: d["facts"].update(cpu=1), "facts.cpu must be text, not 1"),
        (lambda d: d["contenders"].update(A="x"), "contenders.A must be a table"),
        (lambda d: d["measurements"].append(1), "measurements[1] must be a table, not 1"),
        (lambda d: d["measurements"][0].pop("title"), "`title` must be of type str, not None"),
        (lambda d: d["measurements"][0]["rows"][0]["values"].update(time=["x"]), "list of numbers"),
        (lambda d: d["measurements"][0]["rows"][0]["values"].update(time=[]), "not empty"),
        (lambda d: d["measurements"][0]["rows"][0]["values"].update(x=[1]), "x is no metric"),
        (lambda d: d["measurements"][0]["rows"][0]["histograms"].update(x=[True]), "numbers"),
        (lambda d: d["measurements"][0]["rows"][1].pop("twin"), "`twin` must be of type bool"),
        (lambda d: d["measurements"][0]["metrics"].update(time={}), "`unit` must be of type str"),
    ],
)
def test_a_damaged_result_says_what_is_wrong_with_it(tmp_path, change, told):
    whole = three()
    change(whole)
    with pytest.raises(ConfigError, match=re.escape(told)):
        results.load(saved(tmp_path, whole))


def test_what_is_no_result(tmp_path):
    for text in ("", "[1]", "[" * 100_000, '{"schema": NaN}'):
        path = tmp_path / "x.json"
        path.write_text(text)
        with pytest.raises(ConfigError):
            results.load(path)


def test_the_summary_tells_differences_and_noise():
    (block,) = summary.blocks(three())
    base, other = block.figures
    assert (base.median.value, base.ratio) == (10.35, None)
    assert other.ratio is not None
    assert other.ratio.value == pytest.approx(5.05 / 10.35)
    assert other.p is not None
    assert other.p < 0.01
    assert other.differs
    assert block.floor is not None
    assert 0 < block.floor < 0.1
    assert block.errors == ((EVIL, EVIL),)


def test_a_measurement_in_which_all_failed_is_told():
    whole = document({**row("A", {}), "error": "no"})
    whole["measurements"][0]["metrics"] = {}
    text = markdown.report(whole)
    assert "A failed: no" in text
    assert "A failed: no" in page.page(whole, [])
    assert list(pictures.draw(whole)) == []


def test_markdown_is_text_whatever_the_names():
    text = markdown.report(three())
    assert "| B | 5.05 (4.85 to 5.25) | 6 | **0.488" in text
    assert "<script>" not in text.replace("\\<script\\>", "")
    assert "noise" in text
    # A cell's bar is no column.
    lines = [line for line in text.splitlines() if line.startswith("| A |")]
    assert all(line.replace("\\|", "").count("|") in (4, 6) for line in lines)


class Addresses(HTMLParser):
    """Elements with what they would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]


def test_the_page_needs_nothing_else_and_runs_nothing():
    whole = three()
    text = page.page(whole, list(pictures.draw(whole)))
    parser = Addresses()
    parser.feed(text)
    assert "script" not in parser.tags
    assert parser.tags.count("img") == 1
    assert all(address.startswith("data:") for address in parser.fetched)
    assert "url(" not in text
    assert "@import" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert '<tr class="differs"><td>B</td>' in text


def test_pictures_are_the_same_each_time_and_of_both_kinds():
    whole = three()
    counts = histogram([0.5, 3.0, 3.1, 200.0, 1e9])
    whole["measurements"][0]["rows"][0]["histograms"] = {"late": counts}
    first, second = list(pictures.draw(whole)), list(pictures.draw(whole))
    assert [one.title for one in first] == [
        "first: time (ms, lower is better)", "first: late, share of times above"
    ]  # fmt: skip
    for one, again in zip(first, second, strict=True):
        assert one.svg == again.svg
        assert one.svg.startswith(b"<?xml")
        assert one.png[:8] == b"\x89PNG\r\n\x1a\n"
        width, height = struct.unpack(">II", one.png[16:24])
        assert width > 800
        assert height > 200
        assert re.fullmatch(r"[a-z0-9-]+", one.name)


def test_a_boot_is_one_picture_of_its_phases():
    whole = three()
    (boot,) = whole["measurements"]
    boot["kind"] = "boot"
    boot["metrics"] = {
        name: {"unit": "ms", "better": "lower"} for name in ("kernel", "init", "vmm vm")
    }
    for number, one in enumerate(boot["rows"][:2]):
        one["values"] = {
            "kernel": [20.0, 21.0 + number],
            "init": [90.0, 99.0],
            "vmm vm": [3.0, 4.0],
        }
    (picture,) = pictures.draw(whole)
    assert picture.title == "first: phases, ms from exec"
    text = page.page(whole, [picture])
    assert text.index("first: vmm vm") < text.index("<img")
    boot["rows"] = [{**row("A", {}), "error": "no"}]
    assert list(pictures.draw(whole)) == []


def test_without_matplotlib_the_tables_are_there_and_say_so(tmp_path):
    path = saved(tmp_path, three())
    code = (
        "import sys; sys.modules['matplotlib'] = None; from vmm.bench.cli import main; "
        f"sys.exit(main(['report', {str(path)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    remedy = "pip install 'vllmd-hypervisor[bench]'"
    assert f"no pictures: pictures need matplotlib ({remedy}" in done.stderr
    assert "No pictures: pictures need matplotlib" in (tmp_path / "r.html").read_text()
    assert (tmp_path / "r.md").exists()


def test_report_writes_the_files_again(tmp_path, capsys):
    path = saved(tmp_path, three())
    assert cli.main(["report", str(path), "--output", str(tmp_path / "more")]) == 0
    names = sorted(one.name for one in (tmp_path / "more").iterdir())
    assert names == ["r", "r.html", "r.md"]
    assert len(list((tmp_path / "more/r").iterdir())) == 2


def later(factor: float, **facts_of_new: str) -> dict:
    whole = three()
    whole["measurements"][0]["rows"][1]["values"]["time"] = [value * factor for value in FAST]
    whole["facts"] = {**whole["facts"], **facts_of_new}
    return whole


def test_a_comparison_tells_what_differs_beyond_the_noise(tmp_path, capsys):
    old = saved(tmp_path, three())
    for factor, word, code in ((1.5, "worse", 1), (0.6, "better", 0), (1.01, "no difference", 0)):
        new = saved(tmp_path, later(factor, kernel="6.2"), "new.json")
        assert cli.main(["compare", str(old), str(new), "--strict"]) == code
        told = capsys.readouterr().out
        assert re.search(rf"\| first \| time \| B \| {words.short(factor)} .*\| {word} \|", told)
        assert re.search(r"\| first \| time \| A \| 1.00 .*\| no difference \|", told)
        assert "- kernel: unknown, now 6.2" in told
    assert cli.main(["compare", str(old), str(new)]) == 0


def test_a_comparison_of_two_hosts_is_refused(tmp_path, capsys):
    old = saved(tmp_path, three())
    new = saved(tmp_path, later(1, cpu="another", machine="n"), "new.json")
    assert cli.main(["compare", str(old), str(new)]) == 2
    told = capsys.readouterr().err
    assert "different hosts" in told
    assert "cpu: c and another" in told
    assert "machine: m and n" in told


def test_a_baseline_that_moved_is_told():
    new = three()
    new["measurements"][0]["rows"][0]["values"]["time"] = [value * 2 for value in SLOW]
    told = compare.report(three(), new)
    assert "The baseline of 'first' (time) changed as well, 2.00 x" in told
    new["measurements"][0]["settings"]["cpus"] = 2
    assert "Nothing was measured in both in the same way." in compare.report(three(), new)


def test_facts_are_of_this_machine():
    found = facts.host_facts()
    assert all(isinstance(text, str) and text for text in found.values())
    assert facts.differences(found, found) == []
    machine_id = Path("/etc/machine-id")
    if machine_id.exists():
        assert machine_id.read_text().strip() not in json.dumps(found)


def test_writing_leaves_the_old_file_where_it_fails(tmp_path):
    with pytest.raises(HostError, match="cannot write"):
        results.write(tmp_path / "none/x", "text")
    with pytest.raises(HostError, match="cannot make the folder"):
        output.folder(saved(tmp_path, {}) / "x")


def test_figures_as_text():
    assert [words.short(value) for value in (0.01234, 1.234, 12.34, 1234.5, 0, -2.5)] == [
        "0.0123", "1.23", "12.3", "1234", "0", "-2.50"
    ]  # fmt: skip
    assert words.number(Interval(1.0, 0.9, 1.1)) == "1.00 (0.900 to 1.10)"
    assert words.number(Interval(1.0, 1.0, 1.0)) == "1.00"
    assert words.percent(None) == "-"


def test_lateness_is_against_the_earliest_hundredth():
    times = [1000.0 + n for n in range(200)]
    found = jitter.sample(times)
    assert found.values == {"p50": 98.0, "p99": 196.0, "worst": 197.0}
    counts = found.histograms["late"]
    assert sum(counts) == 200
    assert len(counts) == len(EDGES) - 1


def test_the_guests_are_made_of_their_sources(tmp_path):
    for tool in ("gcc", "objcopy"):
        if subprocess.run(["which", tool], capture_output=True, check=False).returncode:
            pytest.skip(f"needs {tool} (apt-get install gcc binutils)")
    assert generator.generate() == (generator.TARGET).read_text()
    assert guests.with_numbers(guestcode.BYTE, 7)[8:12] == struct.pack("<I", 7)


def test_a_guest_is_the_same_file_for_each_start(tmp_path):
    """Else every start would be the first of a kernel that its VMM has never seen."""
    first = guests.write_byte_guest(tmp_path / "g").stat()
    again = guests.write_byte_guest(tmp_path / "g").stat()
    assert (again.st_ino, again.st_ctime_ns) == (first.st_ino, first.st_ctime_ns)
    assert guests.write_byte_guest(tmp_path / "g", 5).read_bytes().count(b"\x05") >= 1
