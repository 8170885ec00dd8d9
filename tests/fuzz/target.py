"""What a target is, and the two kinds of them."""

from __future__ import annotations

import os
import random
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, MutableSequence
    from pathlib import Path

# Inputs between two looks at the clock.
CHUNK = 65536
RACING_CHUNK = 1024


class Found(AssertionError):
    """What a target saw that may not be. ``index`` is the input's number."""

    def __init__(self, index: int, what: str) -> None:
        super().__init__(f"input {index}: {what}")
        self.index = index


class Target:
    """``name``; ``quick``: the inputs of a test run; ``kvm``: it needs /dev/kvm.

    ``plants`` are faults by name, which the target has to find within ``quick`` inputs when it is
    told one of them. ``racing``: what happens depends on the moment as well as on the seed.
    """

    name = ""
    quick = 1000
    kvm = False
    racing = False
    # Whether a thread sanitizer has something to see in it.
    threads = False
    plants: tuple[str, ...] = ()

    def run(
        self,
        seed: int,
        first: int,
        count: int,
        seconds: float,
        progress: MutableSequence[int],
        plant: str,
        folder: Path,
    ) -> int:
        """``count`` inputs, or for ``seconds``; returns how many. Found at the first that fails.

        ``progress[0]`` is always the number of the input under way.
        """
        raise NotImplementedError


class NativeTarget(Target):
    """``loop(seed, first, count, progress)`` makes and gives the inputs; it may raise Found."""

    def __init__(
        self,
        name: str,
        loop: Callable[[str], Callable[..., None]],
        quick: int = 20000,
        plants: tuple[str, ...] = ("unchecked",),
        racing: bool = False,
    ) -> None:
        """``loop(plant)`` gives the loop, as late as that: its module is built for a run."""
        self.name = name
        self.quick = quick
        self.plants = plants
        self.racing = self.threads = racing
        self._loop = loop

    def run(
        self,
        seed: int,
        first: int,
        count: int,
        seconds: float,
        progress: MutableSequence[int],
        plant: str,
        folder: Path,
    ) -> int:
        """As Target."""
        loop, done = self._loop(plant), 0
        until = time.monotonic() + seconds
        while done < count:
            some = min(RACING_CHUNK if self.racing else CHUNK, count - done)
            loop(seed, first + done, some, progress)
            done += some
            if time.monotonic() > until:
                break
        return done


class MemoryFile:
    """A file without a disk: ``path`` opens it, put() says what it has."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("fuzzed", os.MFD_CLOEXEC)
        self.path = f"/proc/self/fd/{self.fd}"

    def put(self, data: bytes) -> None:
        """These bytes and no others."""
        os.ftruncate(self.fd, len(data))
        os.pwrite(self.fd, data, 0)

    def close(self) -> None:
        """Give it back."""
        os.close(self.fd)


class PythonTarget(Target):
    """Each input is a call of one(); what it raises, but for ``refusals``, is found.

    ``refusals`` are what the part under test may say to an input: errors with their words.
    """

    refusals: tuple[type[BaseException], ...] = ()

    def begin(self, folder: Path) -> None:
        """Before the first input; ``folder`` is empty and goes away."""

    def end(self) -> None:
        """After the last one, whatever happened."""

    def one(self, dice: Dice) -> None:
        """One input. AssertionError for what is not as it should be."""
        raise NotImplementedError

    def plant(self, fault: str) -> None:
        """Put this fault into the product, in this process."""
        raise NotImplementedError

    def run(
        self,
        seed: int,
        first: int,
        count: int,
        seconds: float,
        progress: MutableSequence[int],
        plant: str,
        folder: Path,
    ) -> int:
        """As Target."""
        until = time.monotonic() + seconds
        if plant:
            self.plant(plant)
        self.begin(folder)
        try:
            for index in range(first, first + count):
                progress[0] = index
                self._one(Dice(seed, index), index)
                if time.monotonic() > until:
                    return index - first + 1
            return count
        finally:
            self.end()

    def _one(self, dice: Dice, index: int) -> None:
        try:
            with suppress(*self.refusals):
                self.one(dice)
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            raise Found(index, what + dice.shown()) from error


class Dice(random.Random):
    """The choices of one input: the same for the same seed and number."""

    def __init__(self, seed: int, index: int) -> None:
        super().__init__(seed << 48 | index)
        self.input: Any = None

    def __new__(cls, seed: int, index: int) -> Dice:  # random.Random's takes one
        return super().__new__(cls)

    def chance(self, of: int) -> bool:
        """One time in so many."""
        return self.randrange(of) == 0

    def integer(self) -> int:
        """Of any size that a field has, often at an edge."""
        bits = self.choice((1, 7, 8, 15, 16, 31, 32, 47, 63, 64))
        edge = self.choice((0, 1, (1 << bits) - 1, 1 << bits - 1, self.getrandbits(bits)))
        return max(0, edge + self.choice((-1, 0, 0, 0, 1))) & (1 << 64) - 1

    def mutated(self, data: bytes, most: int = 8) -> bytes:
        """``data`` with bytes, words and stretches changed; kept for who asks what it was."""
        changed = bytearray(data)
        for _ in range(self.randrange(most + 1)):
            self._mutate(changed)
        self.input = bytes(changed)
        return self.input

    def _mutate(self, data: bytearray) -> None:
        at = self.randrange(len(data)) if data else 0
        kind = self.randrange(8)
        if kind < 2 and data:
            data[at] = self.choice((0, 1, 0x7F, 0x80, 0xFF, self.getrandbits(8)))
        elif kind < 5:
            size = self.choice((1, 2, 4, 8))
            at -= at % size
            word = (self.integer() & (1 << 8 * size) - 1).to_bytes(size, "little")
            data[at : at + size] = word[: len(data) - at]
        elif kind == 5:
            del data[at : at + self.randrange(1, 64)]
        elif kind == 6:
            other = self.randrange(len(data) + 1)
            data[at:at] = data[other : other + self.randrange(64)]
        elif data:
            data[at] ^= 1 << self.randrange(8)

    def shown(self) -> str:
        """The input, for a message."""
        if self.input is None:
            return ""
        text = repr(self.input)
        return f"\n  the input: {text[:2000]}{'...' if len(text) > 2000 else ''}"
