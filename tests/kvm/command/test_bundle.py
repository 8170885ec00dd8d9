"""A start by the console script takes every module of ours from the bundle."""

from __future__ import annotations

from tests.support.bundled import copy_checkout, not_bundled, start_verbosely
from tests.support.command import Command


def test_a_guest_runs_and_ends_without_a_search_for_modules(tmp_path):
    tree = copy_checkout(tmp_path / "checkout")
    folder = tmp_path / "vm"
    folder.mkdir()
    command = Command(folder)
    for _ in range(2):  # the first reads the kernel with pyelftools, the second its plan
        code, imported = start_verbosely(tree, command.env)
        assert code == 0
        assert any(row.startswith("'vmm.machine' <vmm.light.bundle.Loader") for row in imported)
        assert not_bundled(imported) == []
