"""An instance's folder as other processes than its owner see it.

Its owner may be another user, and has put into it what he likes: nothing is opened through a link,
nothing but plain files is read, and what is written there is believed only as far as the kernel
confirms it. The kernel drops the lock with the process that took it: the lock tells whether the
instance runs, in whichever pid namespace.
"""

from __future__ import annotations

import os
import time

from vmm._native.host.posix import ofd_conflict, ofd_lock
from vmm.errors import BusyError, HostError
from vmm.light import jsontext
from vmm.light.printable import visible
from vmm.run.control import ANSWER_SECONDS, ask, peer_pid
from vmm.run.instance import (
    CONTROL,
    LOCK,
    LOCK_BYTES_MAX,
    STATE,
    STATE_BYTES_MAX,
    Holder,
    open_plain,
    parse_holder,
    read_plain,
    remove_files,
)
from vmm.run.process import open_process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from vmm.run.process import Process

FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
WHO_SECONDS = 2.0
LOOKS = 10
LOOK_SECONDS = 0.05


class Folder:
    """The folder ``name`` in ``place``; OSError when there is none. close() it.

    ``unseen`` says why process() found none while the instance runs.
    """

    def __init__(self, place: str, name: str) -> None:
        self.name = name
        self.place = place
        self.path = os.path.join(place, name)
        at = os.open(place, FOLDER_FLAGS)
        try:
            self.fd = os.open(name, FOLDER_FLAGS, dir_fd=at)
            try:
                self.uid = os.fstat(self.fd).st_uid
                self._lock = open_plain(LOCK, directory=self.fd)
            except BaseException:
                os.close(self.fd)
                raise
        finally:
            os.close(at)
        self.unseen = ""

    @property
    def running(self) -> bool:
        """Somebody holds the lock."""
        return ofd_conflict(self._lock, True, 0, 0) is not None

    def owner(self) -> Holder | None:
        """Who held the lock last, alive or dead, in the pid namespace where that was."""
        return parse_holder(os.pread(self._lock, LOCK_BYTES_MAX, 0))

    def state(self) -> dict[str, Any]:
        """What the last owner wrote, if it is about that owner."""
        owner = self.owner()
        try:
            facts = jsontext.loads(read_plain(STATE, STATE_BYTES_MAX, self.fd))
        except (OSError, ValueError):
            return {}
        if owner is None or facts.get("pid") != owner.pid:
            return {}
        # In a container each VMM has the same pid.
        return facts if facts.get("start_time") in (None, owner.start_time) else {}

    def ask(self, request: dict[str, Any], seconds: float = ANSWER_SECONDS) -> dict[str, Any]:
        """The instance's answer; OSError when there is none."""
        return ask(CONTROL, request, seconds, self.fd, self.uid)

    def process(self) -> Process | None:
        """The process that runs the instance, if the kernel and the folder agree about it.

        The lock names it; a pid that is another namespace's, or a lie, is found out by the start
        time and the users. The control socket's maker is known to the kernel.
        """
        if os.fstat(self._lock).st_uid != self.uid:
            self.unseen = f"{self.path}: folder and lock belong to different users"
            return None
        for _ in range(LOOKS):
            owner, found = self._find_process()
            if found is not None or not self.running:
                break
            time.sleep(LOOK_SECONDS)  # one that has just taken the lock has not written into it
        told = f"process {owner.pid} of its lock" if owner is not None else "its process"
        self.unseen = "" if found else (
            f"{told} is not to be seen here as one of user {self.uid}: it runs in another pid "
            "namespace (a container), or the lock does not tell the truth"
        )  # fmt: skip
        return found

    def _find_process(self) -> tuple[Holder | None, Process | None]:
        owner = self.owner()
        found = open_process(owner.pid, self.uid, owner.start_time) if owner is not None else None
        if found is None:
            try:
                found = open_process(peer_pid(self.fd, CONTROL, self.uid, WHO_SECONDS), self.uid)
            except OSError:
                found = None
        return owner, found

    def forget(self) -> None:
        """Remove the folder of an instance that does not run; BusyError when it does."""
        fd = open_plain(LOCK, os.O_RDWR, self.fd)
        try:
            ofd_lock(fd, True, 0, 0)
            remove_files(directory=self.fd)
            at = os.open(self.place, FOLDER_FLAGS)
            try:
                os.rmdir(self.name, dir_fd=at)
            finally:
                os.close(at)
        except BlockingIOError:
            raise BusyError(
                f"the instance {self.name} runs",
                f"stop it first: vllmd-hypervisor stop {self.name}",
            ) from None
        except OSError as error:
            raise HostError(
                f"cannot remove {visible(self.path)}: {error.strerror}", "see what else is in it"
            ) from error
        finally:
            os.close(fd)

    @property
    def gone(self) -> bool:
        """It was removed meanwhile: forgotten, or by a start that failed."""
        return os.fstat(self._lock).st_nlink == 0

    def close(self) -> None:
        """Give the descriptors back."""
        os.close(self._lock)
        os.close(self.fd)


def wait_unlocked(folder: Folder, seconds: float) -> bool:
    """True when nobody runs it any more, in time: for a process that is not to be seen."""
    deadline = time.monotonic() + seconds
    while folder.running:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
