"""One start of one contender: a folder with its files, the process, what it wrote, its end."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from vmm.bench import interrupt, stdio
from vmm.bench.model import Contender
from vmm.bench.template import Word, fill, fill_command, fill_environment, uses
from vmm.settings.config import read_environment

# More than any guest of a benchmark says; one that says more is not read for ever.
TEXT_MAX = 64 << 20


class TrialError(Exception):
    """A contender did not do what is measured; the text says what it did."""


class Trial:
    """A running contender, its guest's serial port read by us; a context that ends it.

    Raises TemplateError for a template that does not fit, TrialError for the rest. Times are of
    time.perf_counter(), in s; ``started`` is just before the program is executed.
    """

    def __init__(
        self, contender: Contender, values: Mapping[str, str | None], timeout: float
    ) -> None:
        self.contender = contender
        self.timeout = timeout
        self._folder = tempfile.TemporaryDirectory(prefix="vllmd-bench-")
        self.folder = Path(self._folder.name)
        self._values: dict[str, str | None] = {
            **values,
            "folder": str(self.folder),
            "socket": str(self.folder / "socket"),
            "serial": str(self.folder / "serial"),
        }
        self.text = bytearray()
        self.chunks: list[tuple[float, int]] = []
        self._open: list[int] = []
        self._words = open(self.folder / "stderr", "w+b")
        self.process: subprocess.Popen[bytes] | None = None
        try:
            self._start()
        except BaseException:
            # An interrupt may come at any place: what runs by then is ended as well.
            self.close()
            raise

    def _start(self) -> None:
        what = self.contender.name
        for name, content in self.contender.files.items():
            with open(self.folder / name, "wb") as file:
                if isinstance(content, str):
                    file.write(fill(content, self._values, f"{what}, file {name}").encode())
                else:
                    file.truncate(content)
        words = fill_command(self.contender.command, self._values, f"{what}, command")
        own = fill_environment(self.contender.env, self._values, what)
        self.environment = {**read_environment(), **own}
        try:
            self._execute(words)
        except OSError as error:
            raise TrialError(f"{error.filename or words[0]}: {error.strerror}") from error

    def _execute(self, words: list[str]) -> None:
        writer = self._serial()
        self.started = time.perf_counter()
        with interrupt.deferred():
            self.process = subprocess.Popen(
                words, env=self.environment, stdout=writer,
                stdin=writer if self.contender.terminal else subprocess.DEVNULL,
                stderr=self._words, start_new_session=True,
            )  # fmt: skip
        self._alive = os.pidfd_open(self.process.pid)
        self._open.append(self._alive)
        if writer in self._open:
            self._open.remove(writer)
            os.close(writer)

    def _serial(self) -> int:
        """Opens what is read; returns what is to be the program's stdout."""
        if uses(self.contender.command, "serial"):
            fifo = self.folder / "serial"
            os.mkfifo(fifo)
            # Open for writing as well: it has no end before its program has one.
            self._reader = os.open(fifo, os.O_RDWR | os.O_CLOEXEC)
            self._open.append(self._reader)
            return self._words.fileno()
        self._reader, writer = stdio.opened(self.contender.terminal)
        self._open += [self._reader, writer]
        return writer

    @property
    def pid(self) -> int:
        """Of the program that was executed."""
        assert self.process is not None
        return self.process.pid

    def until(self, wanted: bytes) -> float:
        """When these bytes were there, from the begin of what the guest has said."""
        deadline = time.perf_counter() + self.timeout
        at = 0
        while (at := self.text.find(wanted, at)) < 0:
            at = max(0, len(self.text) - len(wanted))
            if not self.read(deadline):
                raise TrialError(f"no {wanted!r}: {self._end()}{self.last_words()}")
        return self.when(at + len(wanted) - 1)

    def until_line(self, pattern: re.Pattern[bytes], at: int = 0) -> int:
        """The end of what matches, behind ``at``; waits for it, all lines together ``timeout``."""
        deadline = self.started + self.timeout
        while (found := pattern.search(self.text, at)) is None:
            if not self.read(deadline):
                text = pattern.pattern.decode()
                raise TrialError(f"no line {text!r}: {self._end()}{self.last_words()}")
        return max(found.end(), 1)

    def when(self, offset: int) -> float:
        """When the byte at that offset of ``text`` was read."""
        return next(at for at, end in self.chunks if end > offset)

    def read(self, deadline: float) -> bool:
        """Wait for more text; False when the program has ended. TrialError at the deadline."""
        interrupt.check()
        left = deadline - time.perf_counter()
        ready = select.select([self._reader, self._alive], [], [], max(left, 0))[0]
        if self._reader in ready:
            data = stdio.read_or_end(self._reader)
            now = time.perf_counter()
            self.text += data
            self.chunks.append((now, len(self.text)))
            if len(self.text) > TEXT_MAX:
                raise TrialError(f"the guest said more than {TEXT_MAX >> 20} MiB")
            return bool(data)
        if not ready:
            raise TrialError(f"not done within {self.timeout:g} s{self._said()}")
        return False

    def _end(self) -> str:
        assert self.process is not None
        try:
            code = self.process.wait(1)
        except subprocess.TimeoutExpired:
            return "it closed its output"
        if code < 0:
            return f"ended by {signal.Signals(-code).name}"
        return f"ended with code {code}"

    def _said(self) -> str:
        """What the guest said last, or else its VMM."""
        lines = bytes(self.text[-300:]).decode(errors="replace").strip().splitlines()
        return f"; the guest said last {lines[-1]!r}" if lines else self.last_words()

    def told(self) -> str:
        """All of its stderr."""
        return (self.folder / "stderr").read_text(encoding="utf-8", errors="replace")

    def last_words(self) -> str:
        """The last line on its stderr, behind a colon."""
        lines = self.told().strip().splitlines()
        return f": {lines[-1].strip()[:300]}" if lines else ""

    def ask(self, words: tuple[Word, ...], what: str) -> str:
        """Output of a program of the contender's, in the same environment."""
        line = fill_command(words, self._values, f"{self.contender.name}, {what}")
        try:
            done = subprocess.run(
                line, env=self.environment, capture_output=True, text=True, timeout=self.timeout,
                check=True,
            )  # fmt: skip
        except (OSError, subprocess.SubprocessError) as error:
            raise TrialError(f"{what}: {error}") from error
        return done.stdout

    def close(self) -> None:
        """Kill it and all that it started, and remove its folder."""
        if self.process is not None:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                self.process.kill()
            self.process.wait()
        while self._open:
            os.close(self._open.pop())
        self._words.close()
        self._folder.cleanup()

    def __enter__(self) -> Trial:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
