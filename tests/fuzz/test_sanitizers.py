"""Builds with sanitizers: they see what nobody else does, and nothing in what we have."""

from __future__ import annotations

import os
import re

import pytest

from tests.fuzz import build, supervise

pytestmark = [pytest.mark.full, pytest.mark.timeout(1800)]
# Of their own threads, or of one: the rest is `make sanitize`.
TARGETS = {
    "asan": ("virtqueue", "blk", "rng", "console", "uart", "blk-racing", "json"),
    "tsan": ("blk-racing", "blk-overlay-racing", "rng-racing", "console-racing"),
}


@pytest.fixture(scope="module", params=sorted(TARGETS))
def kind(request):
    build.build(request.param)
    return request.param


def test_nothing_is_found(kind):
    for target in TARGETS[kind]:
        result = supervise.run(target, 12, count=20_000, seconds=20, kind=kind)
        assert not result.found, f"{result.command}\n{result.found}"


@pytest.mark.parametrize(
    ("made", "fault", "told"),
    [
        # Whichever of the two that look at it is the first to see it.
        ("asan", "overflow", "heap-buffer-overflow|insufficient space for an object"),
        ("asan", "undefined", "shift exponent 40 is too large"),
        ("tsan", "race", "data race"),
    ],
)
def test_what_only_they_see_is_seen(made, fault, told):
    build.build(made)
    assert re.search(told, supervise.run("self", 1, count=100, kind=made, plant=fault).found)
    assert not supervise.run("self", 1, count=100, plant=fault).found


def test_the_modules_of_the_tree_stay_as_they_are(kind):
    import vmm._native.virtio.virtqueue as module

    assert os.fspath(build.FOLDER) not in module.__file__
    assert list((build.FOLDER / kind).rglob("virtqueue*.so"))
