"""A log file is opened anew while other threads write to it."""

from __future__ import annotations

import os
import threading

from vmm.log.hub import INFO
from vmm.log.sinks import FileSink

ROTATIONS = 200


def test_no_line_goes_to_a_descriptor_of_others(tmp_path):
    path, other = tmp_path / "log", tmp_path / "other"
    sink = FileSink(str(path))
    done = threading.Event()
    written = [0]

    def write() -> None:
        while not done.is_set():
            sink.write(INFO, "test", "line")
            written[0] += 1

    def take_descriptors() -> None:
        """As devices that are started meanwhile: they get what the log gave up."""
        while not done.is_set():
            os.close(os.open(other, os.O_WRONLY | os.O_CREAT))

    threads = [threading.Thread(target=work) for work in (write, take_descriptors)]
    number = sink._fd
    for thread in threads:
        thread.start()
    for n in range(ROTATIONS):
        os.rename(path, tmp_path / f"log.{n}")
        sink.reopen()
    done.set()
    for thread in threads:
        thread.join()
    sink.close()
    assert sink._fd == number
    assert sink.lost == 0
    assert other.read_bytes() == b""
    lines = sum(file.read_text().count("line\n") for file in tmp_path.glob("log*"))
    assert lines == written[0]
