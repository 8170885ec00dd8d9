"""A command whose system calls a test answers, with nothing loaded into it (seccomp_unotify(2)).

The calls in CALLS, and of ioctl those of KVM but KVM_RUN, wait for the test's word: go on, or fail
with an errno. It works for any program, the static executable too. Calls are counted from MARK on:
what loaders and interpreters do before is nobody's fault.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import select
import socket
import struct
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.support.speed import patience

CALLS = {
    "mmap": 9, "ioctl": 16, "clone": 56, "ftruncate": 77, "epoll_ctl": 233, "mbind": 237,
    "timerfd_create": 283, "fallocate": 285, "timerfd_settime": 286, "signalfd4": 289,
    "eventfd2": 290, "epoll_create1": 291, "memfd_create": 319, "io_uring_setup": 425,
    "io_uring_register": 427, "clone3": 435,
}  # fmt: skip
NAMES = {number: name for name, number in CALLS.items()}
MARK = "epoll_create1"
KVM_TYPE, KVM_RUN, CREATE_VM = 0xAE, 0xAE80, "KVM_CREATE_VM"
SECCOMP, SET_MODE_FILTER, NEW_LISTENER = 317, 1, 8
PR_SET_NO_NEW_PRIVS = 38
LOAD, EQUAL, AND, RETURN = 0x20, 0x15, 0x54, 0x06
ALLOW, ASK = 0x7FFF0000, 0x7FC00000
RECEIVE, SEND, GO_ON = 0xC0502100, 0xC0182101, 1
NOTICE = struct.Struct("<QIIiIQ6Q")
GOES_ON = 1000
ANSWER = struct.Struct("<QqiI")
DEFINE = re.compile(r"#define\s+(KVM_\w+)\s+_IO\w*\(\s*KVMIO,\s*(0x[0-9a-fA-F]+)")


def kvm_names() -> dict[int, list[str]]:
    """The ioctls of linux/kvm.h by the low byte of their number."""
    found: dict[int, list[str]] = {}
    for name, number in DEFINE.findall(Path("/usr/include/linux/kvm.h").read_text()):
        found.setdefault(int(number, 16), []).append(name)
    return found


KVM_NAMES = kvm_names()


class Call:
    """One system call: ``names`` that it goes by, ``nth`` of its name, from 0 on.

    ``boots``: how many virtual machines were asked for before it.
    """

    def __init__(self, nr: int, arguments: Sequence[int]) -> None:
        self.nth = self.boots = 0
        self.names = [NAMES[nr]]
        if nr == CALLS["ioctl"]:
            self.names = KVM_NAMES[arguments[1] & 0xFF]

    @property
    def name(self) -> str:
        return self.names[0]

    def same(self, other: Call | None) -> bool:
        """The same one in another run."""
        return other is not None and (self.name, self.nth) == (other.name, other.nth)

    def __repr__(self) -> str:
        return f"{self.name} number {self.nth} in machine {self.boots}"


def _program() -> bytes:
    code = [(LOAD, 0, 0, 0)]
    others = [number for name, number in CALLS.items() if name != "ioctl"]
    code += [(EQUAL, len(others) - n + 5, 0, number) for n, number in enumerate(others)]
    code += [
        (EQUAL, 0, 4, CALLS["ioctl"]),
        (LOAD, 0, 0, 24),  # the low half of its second argument
        (EQUAL, 2, 0, KVM_RUN),
        (AND, 0, 0, 0xFF00),
        (EQUAL, 1, 0, KVM_TYPE << 8),
        (RETURN, 0, 0, ALLOW),
        (RETURN, 0, 0, ASK),
    ]
    return b"".join(struct.pack("<HBBI", *one) for one in code)


PROGRAM = ctypes.create_string_buffer(_program())
HEADER = struct.pack("<HxxxxxxQ", (len(PROGRAM) - 1) // 8, ctypes.addressof(PROGRAM))
LIBC = ctypes.CDLL(None, use_errno=True)


def _be_supervised(peer: socket.socket) -> None:
    """In the child before its exec: little is done, as the filter holds already."""
    LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    fd = LIBC.syscall(SECCOMP, SET_MODE_FILTER, NEW_LISTENER, HEADER)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    socket.send_fds(peer, [b"f"], [fd])


class Supervised:
    """A running command. ``decide(call)`` tells the errno that a call gets, 0: it is made."""

    def __init__(self, words: Sequence[str], decide: Callable[[Call], int], **options) -> None:
        self.calls: list[Call] = []
        self._decide = decide
        self._marked = False
        self._counts: Counter[str] = Counter()
        self.failed: BaseException | None = None
        ours, theirs = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, args=(ours,))
        self._thread.start()
        with theirs:
            streams = {"stdin": subprocess.DEVNULL, "stderr": subprocess.STDOUT, **options}
            self.process = subprocess.Popen(
                words, preexec_fn=lambda: _be_supervised(theirs), stdout=subprocess.PIPE, **streams
            )

    def _serve(self, ours: socket.socket) -> None:
        with ours:
            _, fds, _, _ = socket.recv_fds(ours, 1, 1)
        if not fds:
            return
        try:
            poll = select.poll()
            poll.register(fds[0], select.POLLIN)
            while not poll.poll()[0][1] & select.POLLHUP:
                self._answer(fds[0])
        except BaseException as error:
            self.failed = error
            self.process.kill()
        finally:
            os.close(fds[0])

    def _answer(self, fd: int) -> None:
        notice = bytearray(NOTICE.size)
        try:
            fcntl.ioctl(fd, RECEIVE, notice)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINTR):
                return  # it has been killed meanwhile
            raise
        number, _, _, nr, _, _, *arguments = NOTICE.unpack(notice)
        code = self._judge(nr, arguments)
        answer = ANSWER.pack(number, 0, -code, 0 if code else GO_ON)
        try:
            fcntl.ioctl(fd, SEND, answer)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise

    def _judge(self, nr: int, arguments: Sequence[int]) -> int:
        self._marked = self._marked or NAMES[nr] == MARK
        if not self._marked:
            return 0
        call = Call(nr, arguments)
        call.nth = self._counts[call.name]
        self._counts[call.name] += 1
        call.boots = self._counts[CREATE_VM]
        self.calls.append(call)
        return self._decide(call)

    def begin(self) -> None:
        """Count from 0 again, from the next call on."""
        self.calls = []
        self._counts.clear()
        self._marked = True

    def end(self, seconds: float = 30) -> tuple[int, str]:
        """(exit code, stdout and stderr); it is killed when it does not end (code GOES_ON)."""
        try:
            if self.process.stdin is not None:
                self.process.stdin.flush()
            text = self.process.communicate(timeout=patience(seconds))[0]
            code = self.process.returncode
        except subprocess.TimeoutExpired:
            self.process.kill()
            text, code = self.process.communicate()[0], GOES_ON
        finally:
            self.process.kill()
            self._thread.join(patience(10))
        if self.failed is not None:
            raise self.failed
        return code, text.decode(errors="replace")
