"""The process in which one target runs: whatever an input does to it, the supervisor goes on."""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import json
import mmap
import resource
import signal
import time
import traceback
from pathlib import Path

from tests.fuzz import build

# An input that makes a parser want more than this has found something.
ADDRESS_SPACE = 8 << 30
PR_SET_PDEATHSIG = 1


def main() -> None:
    """Run it as the words say; the answer is a file of JSON."""
    parser = argparse.ArgumentParser()
    for name in ("target", "set", "plant", "folder", "seeds"):
        parser.add_argument(name)
    for name in ("first", "count"):
        parser.add_argument(name, type=int)
    parser.add_argument("seconds", type=float)
    words = parser.parse_args()
    folder = Path(words.folder)
    # Whoever ends the supervisor, by whatever means, ends this as well.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if words.set == "plain":
        faulthandler.enable()
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    build.use(words.set)
    with open(folder / "progress", "r+b") as file:
        shared = mmap.mmap(file.fileno(), 16)
    # Not released: a loop that is ended by an error may still hold a view of it.
    progress = memoryview(shared).cast("Q")
    place = folder / "place"
    place.mkdir()
    answer: dict[str, object] = {}
    inputs = 0
    try:
        from tests.fuzz.registry import target_of

        target = target_of(words.target)
        for seed in map(int, words.seeds.split(",")):
            progress[1] = seed
            inputs += target.run(
                seed, words.first, words.count, words.seconds, progress, words.plant, place
            )
    except AssertionError as error:
        answer["index"] = getattr(error, "index", progress[0])
        answer["found"] = traceback.format_exc()
    answer["inputs"] = inputs
    answer["processor"] = time.process_time()
    (folder / "answer").write_text(json.dumps(answer))


if __name__ == "__main__":
    main()
