"""A disk image whose file system fails by rules, as QEMU's blkdebug does; for tests run by root.

It is FUSE's own protocol (linux/fuse.h) on /dev/fuse, so whatever reads and writes the file meets
the faults where real ones come from: preadv, io_uring, any process. The content is in memory. What
was written since the last flush is in a cache that power_loss() drops, in part and torn. The server
is a process of its own: one that serves its own process would wait for itself when that ends.
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import random
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

needs_fuse = pytest.mark.skipif(
    os.geteuid() != 0 or not os.access("/dev/fuse", os.R_OK | os.W_OK),
    reason="a file system of our own needs root and /dev/fuse",
)
SECTOR = 512
READ, WRITE, FLUSH, ZERO = "read", "write", "flush", "zero"
# linux/fuse.h
LOOKUP, FORGET, GETATTR, SETATTR, OPEN, READ_OP, WRITE_OP, STATFS = 1, 2, 3, 4, 14, 15, 16, 17
RELEASE, FSYNC, FLUSH_OP, INIT, ACCESS, INTERRUPT, DESTROY = 18, 20, 25, 26, 34, 36, 38
FALLOCATE, LSEEK, BATCH_FORGET = 43, 46, 42
UNANSWERED = (FORGET, BATCH_FORGET, INTERRUPT)
IN_HEADER = struct.Struct("<IIQQIIIHH")
OUT_HEADER = struct.Struct("<IiQ")
ATTR = struct.Struct("<6Q10I")
INIT_OUT = struct.Struct("<4I2H2I2HI7I")
MOVE = struct.Struct("<QQII")
RANGE = struct.Struct("<QQQI")
ROOT, FILE = 1, 2
NAME = "disk.img"
BUFFER = 1 << 20
WRITE_MAX = 512 << 10
ASYNC_READ, BIG_WRITES, ASYNC_DIO = 1, 1 << 5, 1 << 15
DIRECT_IO = 1
MNT_DETACH = 2
THREADS = 4


class Rule:
    """What happens to an operation, on the server's side.

    ``operation`` READ, WRITE, FLUSH or ZERO, that touches one of the ``sectors`` (first, end; None:
    any). After ``skip`` of them that went well, ``times`` of them (None: for ever) take ``seconds``
    longer, move only ``short`` bytes and say so, write only the first ``torn`` bytes, and fail with
    ``code``.
    """

    def __init__(
        self, operation: str, code: int = 0, sectors: tuple[int, int] | None = None, skip: int = 0,
        times: int | None = 1, seconds: float = 0.0, short: int | None = None,
        torn: int | None = None,
    ) -> None:  # fmt: skip
        self.operation = operation
        self.code = code
        self.sectors = sectors
        self.skip = skip
        self.times = times
        self.seconds = seconds
        self.short = short
        self.torn = torn
        self.happened = 0

    def takes(self, operation: str, offset: int, length: int) -> bool:
        """Whether it is about this one; counted then."""
        first, end = offset // SECTOR, (offset + max(length, 1) + SECTOR - 1) // SECTOR
        if operation != self.operation or self.happened == self.times:
            return False
        if self.sectors and not (first < self.sectors[1] and self.sectors[0] < end):
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.happened += 1
        return True


class GivenRule:
    """A rule as who gave it sees it."""

    def __init__(self, disk: FaultyDisk, number: int) -> None:
        self._disk = disk
        self._number = number

    @property
    def happened(self) -> int:
        """How often."""
        return int(self._disk.ask("happened", number=self._number))


class FaultyDisk:
    """A mounted file, ``path``, of ``size`` bytes. A context manager; rules may change at any time.

    ``seen`` is its content, ``stable`` what of it a flush has put on the disk.
    """

    def __init__(self, folder: Path, size: int) -> None:
        self._folder = folder / "faulty"
        self._folder.mkdir()
        self.path = self._folder / NAME
        memory = [os.memfd_create(name, 0) for name in ("seen", "stable")]
        ours, theirs = socket.socketpair()
        try:
            for fd in memory:
                os.truncate(fd, size)
            self.seen, self.stable = (mmap.mmap(fd, size) for fd in memory)
            passed = [theirs.fileno(), *memory]
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(self._folder), *map(str, passed)],
                pass_fds=passed, cwd=Path(__file__).parents[2],
            )  # fmt: skip
        finally:
            theirs.close()
            for fd in memory:
                os.close(fd)
        self._asks = ours.makefile("rw", encoding="ascii")
        ours.close()
        self.ask("mounted")

    def ask(self, what: str, **words: Any) -> Any:
        """What the server answers."""
        self._asks.write(json.dumps({"what": what, **words}) + "\n")
        self._asks.flush()
        return json.loads(self._asks.readline())

    def close(self) -> None:
        """Take it away; who still has the file open gets errors."""
        self._asks.close()
        self._process.wait(30)
        ctypes.CDLL(None).umount2(os.fsencode(self._folder), MNT_DETACH)
        self.seen.close()
        self.stable.close()

    def __enter__(self) -> FaultyDisk:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def begin(self, content: bytes) -> None:
        """As new, without rules."""
        self.heal()
        self.ask("begin")
        self.seen[:] = self.stable[:] = content

    def rule(
        self, operation: str, code: int = 0, *, sectors: range | None = None, **words: Any
    ) -> GivenRule:
        """One more, before those that are there (see Rule)."""
        where = [sectors.start, sectors.stop] if sectors else None
        return GivenRule(self, self.ask("rule", words=[operation, code, where], named=words))

    def heal(self) -> None:
        """No more faults."""
        self.ask("heal")

    def log(self) -> list[tuple[str, int, int, int]]:
        """(operation, offset, bytes, error) of all that came since begin()."""
        return [tuple(entry) for entry in self.ask("log")]

    def power_loss(self, seed: int) -> int:
        """What was not flushed is lost but for some of it, in any order, torn between two sectors.

        How many bytes of it survived.
        """
        return int(self.ask("power_loss", seed=seed))


class Server:
    """The process behind a FaultyDisk."""

    def __init__(self, folder: str, size: int, seen: mmap.mmap, stable: mmap.mmap) -> None:
        self.size, self.seen, self.stable = size, seen, stable
        self.cache: list[tuple[int, bytes]] = []
        self.rules: list[Rule] = []
        self.given: list[Rule] = []
        self.log: list[tuple[str, int, int, int]] = []
        self._lock = threading.Lock()
        self._fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        libc = ctypes.CDLL(None, use_errno=True)
        words = f"fd={self._fd},rootmode={stat.S_IFDIR:o},user_id=0,group_id=0"
        if libc.mount(b"faulty", os.fsencode(folder), b"fuse", 0, words.encode()):
            raise OSError(ctypes.get_errno(), f"mount: {os.strerror(ctypes.get_errno())}")
        for _ in range(THREADS):
            threading.Thread(target=self._serve, daemon=True).start()

    def obey(self, what: str, **words: Any) -> Any:
        """One request of the test's."""
        with self._lock:
            if what == "rule":
                self.given.append(Rule(*words["words"], **words["named"]))
                self.rules.insert(0, self.given[-1])
                return len(self.given) - 1
            if what == "happened":
                return self.given[words["number"]].happened
            if what == "heal":
                self.rules.clear()
            elif what == "begin":
                self.cache.clear()
                self.log.clear()
            elif what == "log":
                return self.log
            elif what == "power_loss":
                return self._power_loss(random.Random(words["seed"]))
        return None

    def _power_loss(self, chance: random.Random) -> int:
        kept = 0
        for offset, data in chance.sample(self.cache, chance.randint(0, len(self.cache))):
            first, last = sorted(chance.choices(range(0, len(data) + 1, SECTOR), k=2))
            self.stable[offset + first : offset + last] = data[first:last]
            kept += last - first
        self.cache.clear()
        self.seen[:] = self.stable[:]
        return kept

    # --- the file system ---

    def _serve(self) -> None:
        while True:
            try:
                message = os.read(self._fd, BUFFER + WRITE_MAX)
            except OSError as error:
                if error.errno in (errno.EINTR, errno.ENOENT, errno.EAGAIN):
                    continue
                return  # unmounted
            _, opcode, unique, node, *_ = IN_HEADER.unpack_from(message)
            try:
                answer, code = self._answer(opcode, node, message[IN_HEADER.size :]), 0
            except OSError as error:
                answer, code = b"", error.errno or errno.EIO
            if opcode not in UNANSWERED:
                try:
                    size = OUT_HEADER.size + len(answer)
                    os.write(self._fd, OUT_HEADER.pack(size, -code, unique) + answer)
                except OSError:
                    continue  # whoever asked is gone

    def _answer(self, opcode: int, node: int, body: bytes) -> bytes:
        if opcode == INIT:
            flags = struct.unpack_from("<4I", body)[3] & (ASYNC_READ | BIG_WRITES | ASYNC_DIO)
            return INIT_OUT.pack(7, 31, 1 << 17, flags, 16, 12, WRITE_MAX, 1, 128, 0, *[0] * 8)
        if opcode == LOOKUP:
            if node != ROOT or body.rstrip(b"\0") != NAME.encode():
                raise OSError(errno.ENOENT, "no such file")
            return struct.pack("<4Q2I", FILE, 0, 1, 1, 0, 0) + self._attributes(FILE)
        if opcode in (GETATTR, SETATTR):
            return struct.pack("<Q2I", 1, 0, 0) + self._attributes(node)
        if opcode == OPEN:
            return struct.pack("<QII", 1, DIRECT_IO, 0)
        if opcode == STATFS:
            return struct.pack(
                "<5Q10I", 1 << 20, 1 << 19, 1 << 19, 10, 10, 4096, 255, 4096, *[0] * 7
            )
        if opcode == READ_OP:
            return self._read(*MOVE.unpack_from(body)[1:3])
        if opcode == WRITE_OP:
            return self._write(MOVE.unpack_from(body)[1], body[40:])
        if opcode == FSYNC:
            return self._flush()
        if opcode == FALLOCATE:
            return self._zero(*RANGE.unpack_from(body)[1:])
        if opcode in (RELEASE, FLUSH_OP, ACCESS, DESTROY, *UNANSWERED):
            return b""
        raise OSError(errno.ENOSYS, f"operation {opcode}")

    def _attributes(self, node: int) -> bytes:
        size = self.size
        mode = stat.S_IFREG | 0o600 if node == FILE else stat.S_IFDIR | 0o700
        return ATTR.pack(node, size, size // 512, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)

    def _fault(self, operation: str, offset: int, length: int) -> Rule:
        """The rule for it, slept already; one without any fault when there is none."""
        with self._lock:
            found = next((r for r in self.rules if r.takes(operation, offset, length)), None)
        if found is None:
            return Rule(operation)
        time.sleep(found.seconds)
        return found

    def _done(self, operation: str, offset: int, length: int, code: int) -> None:
        self.log.append((operation, offset, length, code))
        if code:
            raise OSError(code, operation)

    def _read(self, offset: int, length: int) -> bytes:
        rule = self._fault(READ, offset, length)
        with self._lock:
            data = bytes(self.seen[offset : offset + length])
            if rule.short is not None:
                data = data[: rule.short]
            self._done(READ, offset, len(data), rule.code)
        return data

    def _write(self, offset: int, data: bytes) -> bytes:
        rule = self._fault(WRITE, offset, len(data))
        for limit in (rule.short, rule.torn):
            data = data if limit is None else data[:limit]
        with self._lock:
            if not rule.code or rule.torn is not None:
                self.cache.append((offset, data))
                self.seen[offset : offset + len(data)] = data
            self._done(WRITE, offset, len(data), rule.code)
        return struct.pack("<II", len(data), 0)

    def _flush(self) -> bytes:
        rule = self._fault(FLUSH, 0, 0)
        with self._lock:
            if rule.code:
                # As Linux does with pages whose write-back failed: clean, and nobody's any more.
                self.cache.clear()
            for offset, data in self.cache:
                self.stable[offset : offset + len(data)] = data
            self.cache.clear()
            self._done(FLUSH, 0, 0, rule.code)
        return b""

    def _zero(self, offset: int, length: int, mode: int) -> bytes:
        rule = self._fault(ZERO, offset, length)
        with self._lock:
            if not rule.code:
                data = bytes(min(length, max(0, self.size - offset)))
                self.cache.append((offset, data))
                self.seen[offset : offset + len(data)] = data
            self._done(ZERO, offset, length, rule.code)
        return b""


def main() -> None:
    folder, *numbers = sys.argv[1:]
    fd, *memory = map(int, numbers)
    size = os.fstat(memory[0]).st_size
    server = Server(folder, size, *[mmap.mmap(each, size) for each in memory])
    with socket.socket(fileno=fd) as peer, peer.makefile("rw", encoding="ascii") as asks:
        for line in asks:
            asks.write(json.dumps(server.obey(**json.loads(line))) + "\n")
            asks.flush()
    # The test has closed its end, or is gone: so are the threads and the file system.
    os._exit(0)


if __name__ == "__main__":
    main()
