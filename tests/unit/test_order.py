"""The order of the tests' modules where several processes share them."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import LONGEST, rank

HERE = Path(__file__).resolve()
TESTS = HERE.parents[1]


def test_the_longest_come_first_and_the_shortest_last():
    modules = sorted(TESTS.rglob("test_*.py"), key=rank)
    folders = [path.relative_to(TESTS).parts[0] for path in modules]
    assert [path.stem for path in modules[: len(LONGEST)]] == list(LONGEST)
    assert folders.index("kvm") > max(n for n, name in enumerate(folders) if name == "lab")
    assert all((TESTS / "lab" / f"{name}.py").exists() for name in LONGEST)
