"""Whole runs of scripts that stand for VMMs: order, failures, time-outs, interrupts, output."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.support.speed import patience
from tests.unit.bench.fake import ABORTS, GOOD, REFUSES, SILENT, contender, question, write
from vmm.bench import cli, definitions, results, running

ROOT = Path(__file__).resolve().parents[3]
# Appends its name to a file, then is good.
NOTES = "import sys; open(sys.argv[1], 'a').write(sys.argv[2])\n" + GOOD


def run(path: Path) -> tuple[results.Document, list[str]]:
    told: list[str] = []
    document = running.run(definitions.read(path, {}), told.append)
    return document, told


def rows(document: results.Document, number: int = 0) -> dict[str, dict]:
    return {row["contender"]: row for row in document["measurements"][number]["rows"]
            if not row["twin"]}  # fmt: skip


def test_contenders_take_turns_and_the_baseline_runs_once_more(tmp_path):
    order = tmp_path / "order"
    path = write(
        tmp_path, [contender(name, NOTES, str(order), name) for name in "ABC"],
        [question(rounds=2, warmup=1)], baseline="B",
    )  # fmt: skip
    document, _ = run(path)
    assert order.read_text() == "ABCBABCBABCB"
    found = document["measurements"][0]["rows"]
    assert [(row["contender"], row["twin"]) for row in found] == [
        ("A", False), ("B", False), ("C", False), ("B", True)
    ]  # fmt: skip
    assert all(len(row["values"]["first_byte"]) == 2 for row in found)
    assert document["complete"]


def test_each_failure_is_a_row_with_its_reason(tmp_path):
    once = tmp_path / "ran"
    later = f"import os\nif os.path.exists({str(once)!r}): raise SystemExit('second time')\n"
    later += f"open({str(once)!r}, 'w').close()\n{GOOD}"
    contenders = [
        contender("good", GOOD), contender("aborts", ABORTS), contender("refuses", REFUSES),
        contender("silent", SILENT), {"name": "missing", "command": ["/nowhere/vmm"]},
        {"name": "left out", "command": ["/nowhere/vmm"], "optional": True},
        contender("later", later), contender("unknown name", GOOD, "{kernl}"),
        contender("no disk", GOOD, "{disk}"), {"name": "no rights", "command": [str(tmp_path)]},
        contender("unbuilt", GOOD, prepare=[sys.executable, "-c", REFUSES]),
        contender("small", GOOD, limit="64M"), contender("good too", GOOD),
    ]  # fmt: skip
    seconds = patience(2)
    document, told = run(write(tmp_path, contenders, [question(timeout=seconds)]))
    errors = {name: row["error"] for name, row in rows(document).items() if "error" in row}
    assert errors == {
        "aborts": r"no b'\x02': ended by SIGABRT: error: failed to set MSR 0x10a",
        "refuses": r"no b'\x02': ended with code 1: no such CPU model",
        "silent": f"not done within {seconds:g} s",
        "missing": "/nowhere/vmm: No such file or directory",
        "later": r"in round 1: no b'\x02': ended with code 1: second time",
        "unknown name": errors["unknown name"],
        "no disk": errors["no disk"],
        "no rights": f"{tmp_path}: Permission denied",
        "unbuilt": f"prepare: {sys.executable} ended with 1: no such CPU model",
        "small": "not asked: its limit is 64 MiB",
    }
    assert "{kernl} is unknown; there are {binary}" not in errors["unknown name"]
    assert "{kernl} is unknown; there are {cmdline}, {cpus}" in errors["unknown name"]
    assert "{disk} has no value in this measurement" in errors["no disk"]
    for name in ("good", "good too"):
        assert all(value > 0 for value in rows(document)[name]["values"]["first_byte"])
    assert "left out: not at hand, left out" in told


def test_files_environment_and_serial_of_each_start(tmp_path):
    script = (
        "import os, sys, json, time; folder = sys.argv[1]\n"
        "assert os.path.getsize(folder + '/a.img') == 1 << 20\n"
        "assert json.load(open(folder + '/vm.json')) == {'cpus': 3, 'kernel': os.environ['K']}\n"
        "assert 'GONE' not in os.environ\n"
        "print('\\x02 on stdout is no serial port', flush=True); time.sleep(0.1)\n"
        "open(sys.argv[2], 'wb', 0).write(b'\\x02'); time.sleep(60)"
    )
    one = contender(
        "a", script, "{folder}", "{serial}", env={"K": "{kernel}", "GONE": "{disk}"},
        files={"a.img": {"size": "1M"},
               "vm.json": {"text": '{"cpus": {cpus}, "kernel": "{kernel}"}'}},
    )  # fmt: skip
    document, _ = run(write(tmp_path, [one], [question(cpus=3)]))
    assert "error" not in rows(document)["a"], rows(document)["a"]
    assert min(rows(document)["a"]["values"]["first_byte"]) > 100


def test_a_terminal_for_one_that_wants_it(tmp_path):
    script = (
        "import os, sys, time; assert os.isatty(0) and os.isatty(1) and not os.isatty(2)\n"
        "os.write(1, b'no echo, no carriage return\\n\\x02'); time.sleep(60)"
    )
    asks = "import os, sys; sys.exit('no terminal' if not os.isatty(0) else 0)"
    contenders = [
        contender("has", script, terminal=True), contender("has none", asks),
        contender("ends", asks, terminal=True),
    ]  # fmt: skip
    document, _ = run(write(tmp_path, contenders, [question()]))
    found = rows(document)
    assert "error" not in found["has"], found["has"]
    assert found["has none"]["error"] == r"no b'\x02': ended with code 1: no terminal"
    assert found["ends"]["error"] == r"no b'\x02': ended with code 0"


def test_a_boot_is_told_in_its_phases_with_the_vmms_own(tmp_path):
    script = (
        "import sys, time\n"
        "print('setup: 1.5 ms\\nload: 250 ms', file=sys.stderr, flush=True)\n"
        "for line in ('Linux version 6.1', 'Run /init', 'rate=12.5 MB', 'wrong= x'):\n"
        "    print(line, flush=True); time.sleep(0.1)\n"
        "time.sleep(60)"
    )
    timing = {"pattern": r"(?P<name>\w+): (?P<time>[\d.]+) ms", "unit": "ms"}
    stamps = [
        {"name": "kernel", "pattern": "^Linux version"},
        {"name": "init", "pattern": "/init$"},
    ]
    figures = [{"name": "rate", "pattern": r"rate=([\d.]+)", "unit": "MB/s", "better": "higher"}]
    wrong = [{"name": "rate", "pattern": r"wrong= (\w)"}]
    never = [{"name": "never", "pattern": "no such line"}]
    path = write(
        tmp_path, [contender("a", script, timing=timing)],
        [question("boot", stamps=stamps, kernel="k"), question("figures", figures=figures),
         question("figures", name="wrong", figures=wrong),
         question("boot", name="never", stamps=never, timeout=patience(3), rounds=1)],
    )  # fmt: skip
    document, _ = run(path)
    values = rows(document)["a"]["values"]
    assert values["vmm setup"] == [1.5, 1.5]
    assert values["vmm load"] == [250, 250]
    assert all(
        init - kernel > 80 for kernel, init in zip(values["kernel"], values["init"], strict=True)
    )
    assert rows(document, 1)["a"]["values"] == {"rate": [12.5, 12.5]}
    assert document["measurements"][1]["metrics"] == {"rate": {"unit": "MB/s", "better": "higher"}}
    assert rows(document, 2)["a"]["error"] == "rate: told was b'x', which is no number"
    assert (
        f"not done within {patience(3):g} s; the guest said last 'wrong= x'"
        in rows(document, 3)["a"]["error"]
    )


def test_exits_that_the_contender_tells(tmp_path):
    tells = [sys.executable, "-c", 'print(\'{"exits": {"io": 7, "none": 0}}\')']
    path = write(
        tmp_path,
        [contender("tells", GOOD, exits=tells), contender("not", GOOD),
         contender("noise", GOOD, exits=[sys.executable, "-c", "print('x')"])],
        [question("exits")],
    )  # fmt: skip
    document, _ = run(path)
    assert rows(document)["tells"]["values"] == {"io": [7, 7], "all": [7, 7]}
    assert "mount -t debugfs none /sys/kernel/debug" in rows(document)["not"]["error"]
    assert "`exits` printed no JSON with a table `exits`: 'x" in rows(document)["noise"]["error"]


def test_prefault_needs_the_words_for_it(tmp_path):
    slow = "import sys, time; time.sleep(1 if sys.argv[1] == 'on' else 0)\n" + GOOD
    words = {"off": "off", "on": "on"}
    path = write(
        tmp_path, [contender("a", slow, "{prefault}", prefault=words), contender("b", GOOD)],
        [question("prefault", memory="1G", rounds=1, warmup=0)],
    )  # fmt: skip
    document, _ = run(path)
    assert 0.4 < rows(document)["a"]["values"]["rate"][0] < 2
    assert rows(document)["b"]["error"].startswith("it defines no `prefault`")


def test_idle_ones_are_counted(tmp_path):
    busy = "import os, time; os.write(1, b'\\x02\\x03')\nwhile True: time.sleep(0.01)"
    path = write(
        tmp_path, [contender("busy", busy), contender("idle", GOOD)],
        [question("density", guests=3, seconds=0.5), question("memory", settle=0.0)],
    )  # fmt: skip
    document, _ = run(path)
    found = rows(document)
    assert min(found["busy"]["values"]["wakeups"]) > 5
    assert max(found["idle"]["values"]["wakeups"]) < 1
    assert 0.5 < found["idle"]["values"]["pss"][0] < 50
    assert rows(document, 1)["idle"]["values"]["threads"] == [1, 1]


def command(*words: object, **more: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "vmm.bench", *map(str, words)], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more,
    )  # fmt: skip


def test_an_interrupt_writes_what_there_is_and_leaves_nobody(tmp_path):
    pids = tmp_path / "pids"
    script = f"import os; open({str(pids)!r}, 'a').write(str(os.getpid()) + ' ')\n"
    path = write(
        tmp_path, [contender("a", script + GOOD), contender("b", script + SILENT)],
        [question(contenders=["a"]), question(name="long", timeout=60.0)],
    )  # fmt: skip
    process = command("run", path, "--output", tmp_path / "out", "--no-pictures")
    deadline = time.monotonic() + patience(30)
    while not pids.exists() or len(pids.read_text().split()) < 5:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    told = process.communicate(timeout=patience(20))[1]
    assert process.returncode == 130, told
    (file,) = (tmp_path / "out").glob("*.json")
    document = results.load(file)
    assert not document["complete"]
    assert len(document["measurements"][0]["rows"][0]["values"]["first_byte"]) == 2
    assert "Interrupted" in file.with_suffix(".md").read_text()
    assert "Interrupted" in file.with_suffix(".html").read_text()
    for pid in pids.read_text().split():
        assert not os.path.exists(f"/proc/{pid}")


def test_an_output_that_is_no_folder_is_told_before_anything_is_measured(tmp_path, capsys):
    ran = tmp_path / "ran"
    path = write(tmp_path, [contender("a", f"open({str(ran)!r}, 'w')")], [question()])
    assert cli.main(["run", str(path), "--output", str(path / "x")]) == 38
    assert f"cannot make the folder {path}/x: Not a directory" in capsys.readouterr().err
    assert cli.main(["run", str(path), "--output", "/proc/self"]) == 38
    assert "cannot write /proc/self/.probe" in capsys.readouterr().err
    assert not ran.exists()


def test_where_all_fail_the_code_says_so_and_the_rows_are_written(tmp_path, capsys):
    path = write(tmp_path, [contender("a", REFUSES)], [question()])
    assert cli.main(["run", str(path), "--output", str(tmp_path), "--rounds", "1"]) == 1
    (file,) = tmp_path.glob("2*.json")
    assert json.loads(file.read_text())["measurements"][0]["rows"][0]["error"]
    assert "no such CPU model" in capsys.readouterr().err
    assert "a failed: " in file.with_suffix(".md").read_text()


def test_what_a_stranger_does_wrong(tmp_path, capsys):
    path = write(tmp_path, [contender("a", GOOD)], [question()])
    for words, told in (
        (["run", str(tmp_path / "none")], "name a TOML or JSON file"),
        (["run", str(path), "--set", "x"], "write --set NAME=VALUE"),
        (["run", str(path), "--only", "x"], "--only x: there are first-byte, a"),
        (["report", str(path)], "is no result of vllmd-hypervisor-bench"),
        (["compare", str(path), str(tmp_path)], "is no result of vllmd-hypervisor-bench"),
    ):
        assert cli.main(words) == 2
        assert told in capsys.readouterr().err
    broken = write(tmp_path, [], [question()], variables={"a": "{nobody}"})
    assert cli.main(["run", str(broken), "--output", str(tmp_path)]) == 2
    assert "variables, a: {nobody} is unknown; there are {here}" in capsys.readouterr().err


def test_the_example_can_be_had_and_read(tmp_path, capsys):
    assert cli.main(["example"]) == 0
    path = tmp_path / "mine.toml"
    path.write_text(capsys.readouterr().out)
    assert cli.main(["run", str(path), "--dry-run"]) == 0
    assert "QEMU: qemu-system-x86_64 -accel kvm" in capsys.readouterr().out
