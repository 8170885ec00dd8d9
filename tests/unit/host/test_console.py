"""The host's end of a console."""

from __future__ import annotations

import os
import time

from vmm.host.console import HostConsole


def test_flush_waits_for_the_guest_s_words(tmp_path):
    path = tmp_path / "console"
    console = HostConsole("file", str(path))
    console.start("console")
    console.port.guest_write(b"words\n" * 1000)
    console.flush(5)
    assert path.read_bytes() == b"words\n" * 1000
    assert console.port.waiting == 0
    console.close()


def test_flush_does_not_wait_for_a_reader_that_sleeps(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    console = HostConsole("file", str(pipe))
    console.start("console")
    console.port.guest_write(b"x" * (128 << 10))
    started = time.monotonic()
    console.flush(0.05)
    assert 0.04 < time.monotonic() - started < 2
    assert console.port.waiting > 0
    os.close(reader)
    console.close()
