"""Runs a target in a process of its own, and sees how it ends: well, found, crashed or stuck."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz import build
from tests.support.speed import patience

# No input takes so long: not with a sanitizer, not beside the rest of a test run.
STUCK_SECONDS = 20.0
LOOK_SECONDS = 0.02
# Until its first input: imports, and what a target prepares.
BEGIN_SECONDS = 100.0
SUPPRESSIONS = Path(__file__).parent / "suppressions"
FOUND = build.FOLDER / "found"
LIBRARIES = {"asan": "libasan.so", "tsan": "libtsan.so"}
FOREVER = 1 << 62
# The number of the input under way, and the seed.
PROGRESS = struct.Struct("<QQ")


@dataclass
class Result:
    """``found`` is empty when nothing was; ``index`` is then of no meaning.

    ``processor`` are seconds of a processor's time, 0 where the process did not tell.
    """

    target: str
    seed: int
    inputs: int
    seconds: float
    found: str = ""
    index: int = 0
    processor: float = 0.0
    command: str = ""

    @property
    def rate(self) -> float:
        """Inputs in a second; where it is known, of a processor's own time."""
        return self.inputs / max(self.processor or self.seconds, 1e-9)


def environment(kind: str) -> dict[str, str]:
    """What a child's environment needs for the sanitizer of a set."""
    if kind not in LIBRARIES:
        return dict(os.environ)
    name = ["gcc", f"-print-file-name={LIBRARIES[kind]}"]
    library = subprocess.run(name, check=True, capture_output=True, text=True).stdout.strip()
    return {
        **os.environ,
        "LD_PRELOAD": library,
        # Python's own allocator hides where an object ends.
        "PYTHONMALLOC": "malloc",
        # Python does not give back what lives until its end.
        "ASAN_OPTIONS": f"detect_leaks=0:suppressions={SUPPRESSIONS / 'asan.txt'}",
        "UBSAN_OPTIONS": f"print_stacktrace=1:suppressions={SUPPRESSIONS / 'ubsan.txt'}",
        "TSAN_OPTIONS": "halt_on_error=1:exitcode=66:ignore_noninstrumented_modules=1"
        f":suppressions={SUPPRESSIONS / 'tsan.txt'}",
    }


def run(
    target: str,
    *seeds: int,
    first: int = 0,
    count: int = FOREVER,
    seconds: float = 1e9,
    kind: str = "plain",
    plant: str = "",
) -> Result:
    """One target until it has had ``count`` inputs or ``seconds``, or something is found.

    With each of ``seeds``.
    """
    build.build(kind)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        folder = Path(name)
        (folder / "progress").write_bytes(PROGRESS.pack(first, 0))
        words = [target, kind, plant, name, ",".join(map(str, seeds)), first, count, seconds]
        command = [sys.executable, "-m", "tests.fuzz.child", *map(str, words)]
        if kind == "tsan":
            command = ["setarch", "-R", *command]  # its shadow memory has fixed places
        began = time.monotonic()
        with open(folder / "output", "wb") as output:
            child = subprocess.Popen(
                command, cwd=build.ROOT, env=environment(kind), stdout=output, stderr=output
            )
            stuck = _watch(child, folder / "progress")
        result = _result(target, first, folder, child.returncode, stuck)
        result.seed = result.seed or seeds[0]
        result.seconds = time.monotonic() - began
    result.command = f"python -m tests.fuzz --target {target} --seed {result.seed} --set {kind}"
    return result


def _watch(child: subprocess.Popen[bytes], progress: Path) -> bool:
    """Wait for its end; True when it had to be ended, as an input had no end."""
    seen, since = (0, 0), time.monotonic()
    try:
        while child.poll() is None:
            now = PROGRESS.unpack(progress.read_bytes())
            if now != seen:
                seen, since = now, time.monotonic()
            elif time.monotonic() - since > patience(STUCK_SECONDS if now[1] else BEGIN_SECONDS):
                child.send_signal(signal.SIGABRT)
                return True
            time.sleep(LOOK_SECONDS)
        return False
    finally:
        try:
            child.wait(5 if child.returncode is None else None)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _result(target: str, first: int, folder: Path, rc: int, stuck: bool) -> Result:
    at, seed = PROGRESS.unpack((folder / "progress").read_bytes())
    output = (folder / "output").read_text(errors="replace")
    try:
        answer = json.loads((folder / "answer").read_text())
    except FileNotFoundError:
        what = "an input without an end" if stuck else f"the process ended with {rc}"
        return Result(target, seed, at - first + 1, 0, f"{what}\n{output[-8000:]}", at)
    if "found" in answer:
        index, found = int(answer["index"]), f"{answer['found']}\n{output}"
        return Result(target, seed, index - first + 1, 0, found, index)
    if rc:
        return Result(target, seed, answer["inputs"], 0, f"ended with {rc}\n{output[-8000:]}", at)
    return Result(target, seed, answer["inputs"], 0, processor=answer["processor"])


def keep(result: Result, racing: bool) -> Path:
    """A file about what was found, with the command that brings it back."""
    FOUND.mkdir(parents=True, exist_ok=True)
    place = "--at 0" if racing else f"--at {result.index} --inputs 1"
    path = FOUND / f"{result.target}-{result.seed}-{result.index}.txt"
    path.write_text(f"{result.command} {place}\n\n{result.found}\n")
    return path
