"""Gates with three positions, and a check that no test leaves descriptors or threads behind.

VLLMD_TEST_KVM and VLLMD_TEST_LAB: unset = run when the machine can, else skip with the reason;
1 = a missing piece is a failure; 0 = off.
"""

from __future__ import annotations

import contextlib
import gc
import os
import time
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests.support.process import open_descriptors, thread_count
from tests.support.speed import patience, slowness

# It starts threads of its own at its first import. The lab's processor has less than it asks for.
with contextlib.suppress(ImportError, RuntimeError):
    import numpy  # noqa: F401

# A property of reports: why a lab was made anew and its job tried again.
RETRIED = "retried in another lab"
# The lab's modules: first those with a lab of their own, then the longest of those that share one.
LONGEST = (
    "test_service", "test_iommufd", "test_deb", "test_passthrough", "test_firmware", "test_debian",
    "test_lifecycle", "test_check",
)  # fmt: skip
GATES = {"kvm": "VLLMD_TEST_KVM", "lab": "VLLMD_TEST_LAB"}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "kvm: needs /dev/kvm (tiny guests)")
    config.addinivalue_line("markers", "lab: boots the lab (real kernels)")
    config.addinivalue_line("markers", "full: part of the longer matrix only")
    config.addinivalue_line("markers", "waits: passes its time with waiting, for seconds")
    # Before there are worker processes, which get it by the environment.
    slowness()
    # Hypothesis has a patience of its own, which knows nothing of this machine.
    slow = [hypothesis.HealthCheck.too_slow]
    hypothesis.settings.register_profile("patient", deadline=None, suppress_health_check=slow)
    hypothesis.settings.load_profile("patient")


def pytest_report_header() -> str:
    return f"slowness: {slowness():g} (every time-out is that many times longer)"


def kvm_problem() -> str | None:
    if os.access("/dev/kvm", os.R_OK | os.W_OK):
        return None
    return "/dev/kvm is missing or not permitted (remedy: load KVM, join the group kvm)"


def lab_problem() -> str | None:
    from tests.lab.rig.lab import missing_for_lab

    missing = missing_for_lab()
    return (
        f"the lab needs Debian packages: apt-get install {' '.join(missing)}" if missing else None
    )


PROBLEMS = {"kvm": kvm_problem, "lab": lab_problem}


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What was tried again, counted: passing at the second attempt is not passing unseen."""
    told: dict[str, list[str]] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            lines = [
                line for name, line in getattr(report, "user_properties", []) if name == RETRIED
            ]
            # A later phase's report has what the earlier ones had.
            nodeid = getattr(report, "nodeid", "")
            told[nodeid] = max(told.get(nodeid, []), lines, key=len)
    count = sum(map(len, told.values()))
    if count:
        terminalreporter.section(f"labs: {count} attempts did not count")
        for nodeid, lines in told.items():
            for line in lines:
                terminalreporter.write_line(f"{nodeid}: {line}")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    usual = float(config.getini("timeout"))
    for item in items:
        own = item.get_closest_marker("timeout")
        seconds = own.args[0] if own else usual
        item.add_marker(pytest.mark.timeout(patience(seconds)), append=False)
        for name in GATES:
            if here / name in Path(item.path).parents:
                item.add_marker(name)
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: rank(Path(item.path)))


def rank(path: Path) -> tuple[int, int]:
    """Modules in this order, where worker processes take one after the other: the longest first.

    A worker that has come to the shared lab keeps it. What is short fills the end, so that no
    worker has a lab to itself when the other is done.
    """
    folder = path.relative_to(Path(__file__).parent).parts[0]
    if folder != "lab":
        return 1 + (folder == "unit"), path.stem != "test_binary"
    return 0, LONGEST.index(path.stem) if path.stem in LONGEST else len(LONGEST)


def pytest_collection_finish() -> None:
    """What all tests share is never garbage: collecting for each of them looks at its own only."""
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("full") and os.environ.get("VLLMD_TEST_FULL") != "1":
        pytest.skip("part of the longer matrix (make test-full)")
    for name, variable in GATES.items():
        if not item.get_closest_marker(name):
            continue
        setting = os.environ.get(variable)
        if setting == "0":
            pytest.skip(f"{variable}=0")
        problem = PROBLEMS[name]()
        if problem and setting == "1":
            pytest.fail(f"{variable}=1, but {problem}")
        if problem:
            pytest.skip(problem)


@pytest.fixture(autouse=True)
def no_leaks(request: pytest.FixtureRequest):
    """Fails a test after which more descriptors or threads are there than before."""
    if request.node.get_closest_marker("lab"):
        yield
        return
    fds = open_descriptors()
    threads = thread_count()
    yield
    deadline = time.monotonic() + patience(1)
    while True:
        gc.collect()
        new = {k: v for k, v in open_descriptors().items() if k not in fds}
        more = thread_count() - threads
        if not new and more <= 0:
            return
        if time.monotonic() > deadline:
            pytest.fail(f"left behind: descriptors {new}, {more} threads")
        time.sleep(0.02)
