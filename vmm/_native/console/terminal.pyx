"""A terminal's mode: termios(3) without Python's module of that name.

That module is a shared library in most Pythons and so has no place in a static executable.
"""

from libc.string cimport memcpy

from vmm._native.host.fd cimport check

cdef extern from "<unistd.h>":
    int tcgetpgrp(int fd)
    int getpgrp()

cdef extern from "<termios.h>":
    enum: TCSANOW
    enum: IGNBRK, BRKINT, PARMRK, ISTRIP, INLCR, IGNCR, ICRNL, IXON
    enum: CSIZE, PARENB, CS8
    enum: ECHO, ECHONL, ICANON, ISIG, IEXTEN
    struct termios:
        unsigned int c_iflag
        unsigned int c_cflag
        unsigned int c_lflag
    int tcgetattr(int fd, termios *state)
    int tcsetattr(int fd, int actions, const termios *state)


def set_raw(int fd):
    """Raw mode as cfmakeraw(3), but with output processing left on; returns the old state.

    Output processing keeps log lines readable on a terminal that the guest shares with us; a
    guest's own line discipline sends carriage returns, to which it adds nothing. Nothing waits for
    output to go out: it may be stopped (Ctrl-S), or have no reader.
    """
    cdef termios state
    check(tcgetattr(fd, &state), b"tcgetattr")
    old = (<const char *>&state)[:sizeof(state)]
    state.c_iflag &= ~<unsigned int>(
        IGNBRK | BRKINT | PARMRK | ISTRIP | INLCR | IGNCR | ICRNL | IXON
    )
    state.c_cflag = state.c_cflag & ~<unsigned int>(CSIZE | PARENB) | CS8
    state.c_lflag &= ~<unsigned int>(ECHO | ECHONL | ICANON | ISIG | IEXTEN)
    check(tcsetattr(fd, TCSANOW, &state), b"tcsetattr")
    return old


def restore(int fd, bytes old):
    """Bring back the state that set_raw() returned."""
    cdef termios state
    if len(old) != sizeof(state):
        raise ValueError(f"{len(old)} bytes are no terminal state ({sizeof(state)} bytes)")
    memcpy(&state, <const char *>old, sizeof(state))
    check(tcsetattr(fd, TCSANOW, &state), b"tcsetattr")


def in_foreground(int fd):
    """False for a terminal that belongs to another job; true for one without job control."""
    cdef int owner = tcgetpgrp(fd)
    return owner < 0 or owner == getpgrp()
