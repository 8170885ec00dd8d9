"""What the kernel tells of processes (proc(5), /proc/PID/stat)."""

from __future__ import annotations

from vmm.host.files import read_file

# Fields behind the name: state, flags, start time, and the signals that wait for the first thread.
STATE, FLAGS, START_TIME, SIGNALS = 0, 6, 19, 28
ENDED = (b"Z", b"X")
STOPPED = (b"T", b"t")
PF_EXITING = 0x4  # linux/sched.h
SIGKILL_WAITS = 1 << 8  # signal 9
# The kernel ends the requests of a killed process behind its back, and lets go of their files then
# (io_uring's: 0.05 to 0.15 s, and as long as the disk takes). So long a lock of one that ends is
# waited for, and looked at so often.
ENDED_SECONDS = 2.0
LOOK_SECONDS = 0.01


def process_start_time(pid: int) -> int:
    """In clock ticks since boot, which tells a reused pid from the old process; 0 without one."""
    fields = _fields(pid)
    return int(fields[START_TIME]) if fields else 0


def is_stopped(pid: int) -> bool:
    """Whether a signal or a debugger holds it."""
    fields = _fields(pid)
    return bool(fields) and fields[STATE] in STOPPED


def is_ending(pid: int) -> bool:
    """Whether it was killed, ends, or is not there: what it had locked will soon be free."""
    fields = _fields(pid)
    if not fields or fields[STATE] in ENDED:
        return True
    return bool(int(fields[FLAGS]) & PF_EXITING or int(fields[SIGNALS]) & SIGKILL_WAITS)


def _fields(pid: int) -> list[bytes]:
    try:
        fields = read_file(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    except OSError:
        return []
    return fields if len(fields) > SIGNALS else []
