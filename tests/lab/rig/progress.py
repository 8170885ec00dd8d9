"""Lines about steps that take time."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def step(text: str) -> Iterator[None]:
    """Say what is done now, and how long it took."""
    say(f"==> {text}")
    started = time.monotonic()
    yield
    say(f"    done in {time.monotonic() - started:.1f} s")
