"""README's table of figures is what the kept results say, to the letter."""

from __future__ import annotations

import json
import re

import pytest

from benchmarks import figures
from tests.unit.bench.fake import document, row
from vmm.bench import results

PEERS = (figures.QEMU, figures.CLOUD, figures.C, figures.PYTHON, figures.BINARY)
MISSING = "not measured: no 'linux' of vllmd-hypervisor in the lab"


def test_the_table_is_generated():
    text = figures.README.read_text()
    assert figures.replaced(text, figures.generate()) == text
    assert text.count(figures.BEGIN) == 1


@pytest.mark.parametrize("path", sorted(figures.RESULTS.glob("*-vmms.json")), ids=lambda p: p.name)
def test_kept_results_have_a_date_and_a_host(path):
    kept = results.load(path)
    assert re.match(r"\d{4}-\d\d-\d\d", path.name)
    assert kept["started"].startswith(path.name[:10])
    assert kept["facts"]["cpu"] != "unknown"
    assert kept["complete"]


def made(folder, byte: float, **lab: dict) -> dict[str, list[str]]:
    """The table's rows by what they are about, of a result in which ours takes ``byte`` ms."""
    whole = document()
    (question,) = whole["measurements"]
    question["metrics"] = {"first_byte": {"unit": "ms", "better": "lower"}}
    question["name"] = figures.SMALL
    times = {figures.QEMU: 40.0, figures.C: 2.0, figures.CLOUD: 5.0, figures.PYTHON: 30.0}
    times[figures.BINARY] = byte
    question["rows"] = [
        row(name, {"first_byte": [time, time, time]}) for name, time in times.items()
    ]
    whole["facts"].update({"load": "1", "load at the end": "2", "kernel": "6.1"})
    results.save(folder / "2026-01-02-vmms.json", whole)
    if lab:
        told = {"host": {"date": "2026-01-03T00:00:00"}, "lab": lab}
        (folder / "2026-01-03-lab.json").write_text(json.dumps(told))
    lines = figures.generate(folder).splitlines()
    cells = [
        [cell.strip() for cell in line.split(" | ")] for line in lines if line.startswith("| ")
    ]
    return {line[0].removeprefix("| "): line[1:] for line in cells}


def test_a_ratio_is_held_against_its_aim(tmp_path):
    name = "exec to the guest's first serial byte, binary, 128 MiB"
    kept = made(tmp_path, 8.0)
    assert kept[name] == [
        "0.23 x QEMU microvm",
        "0.200 x QEMU microvm; Cloud Hypervisor 0.125, C, the same ioctls 0.0500",
        "kept |",
    ]
    assert kept["the same, in Python (by pip elsewhere)"][-1] == "missed |"
    assert made(tmp_path, 10.0)[name][-1] == "missed |"
    assert kept["Linux to user space (lab)"] == ["0.9 x the best peer", MISSING, "|"]
    assert made(tmp_path, 8.0)["the same, binary, 16 GiB and 4 vCPUs"][1].startswith("not measured")


def test_the_lab_s_figures_are_held_against_the_best_peer(tmp_path):
    linux = {"vllmd-hypervisor": {"seconds": 8.0}, figures.QEMU: {"seconds": 12.0},
             figures.CLOUD: {"seconds": 10.0}}  # fmt: skip
    fio = {"vllmd-hypervisor": {"randread iops": 1200, "read MB/s": 400},
           figures.QEMU: {"randread iops": 1000, "read MB/s": 400}}  # fmt: skip
    found = made(tmp_path, 8.0, linux=linux, fio=fio)
    assert found["Linux to user space (lab)"][1:] == [
        "0.800 x; 0.667 x QEMU microvm, 0.800 x Cloud Hypervisor", "kept |"
    ]  # fmt: skip
    assert found["virtio-blk, 4 KiB random read (lab)"][1:] == ["1.20 x QEMU microvm", "kept |"]
    assert found["virtio-blk, 1 MiB sequential read (lab)"][1:] == [
        "1.00 x QEMU microvm",
        "missed |",
    ]
    linux["vllmd-hypervisor"] = {"error": "lost"}
    assert made(tmp_path, 8.0, linux=linux)["Linux to user space (lab)"][1] == MISSING


def test_a_readme_without_its_place_is_told():
    with pytest.raises(SystemExit, match="no block"):
        figures.replaced("text", "block")
