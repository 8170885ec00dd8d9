"""The module os of the binary: what it needs at once, the rest on first use.

The library's own os makes a class for the environment, and 25 abstract base classes for that; in
the binary that would be a tenth of a start. Everything of posix is here by the same names;
anything else comes from the whole module, which is frozen under the name _whole_os.
"""

import io
import sys
from posix import *
from posix import _exit as _exit
from posix import environ as _environ
from posix import fspath as fspath
from posix import get_terminal_size as get_terminal_size
from posix import mkdir as mkdir

name = "posix"
linesep = "\n"
curdir, pardir, sep, extsep, altsep, pathsep = ".", "..", "/", ".", None, ":"
defpath, devnull = "/bin:/usr/bin", "/dev/null"
SEEK_SET, SEEK_CUR, SEEK_END = 0, 1, 2
# A module that posixpath itself asks for these.
sys.modules.setdefault("os", sys.modules[__name__])


def fsencode(filename):
    """A path as bytes: UTF-8, the file system encoding that the launcher sets."""
    filename = fspath(filename)
    return filename.encode("utf-8", "surrogateescape") if type(filename) is str else filename


def fsdecode(filename):
    """A path as text."""
    filename = fspath(filename)
    return filename.decode("utf-8", "surrogateescape") if type(filename) is bytes else filename


environ = {fsdecode(key): fsdecode(value) for key, value in _environ.items()}

import posixpath as path  # noqa: E402  (it needs what is above)

sys.modules["os.path"] = path


def makedirs(name, mode=0o777, exist_ok=False):
    """A directory with all those above it."""
    head, tail = path.split(name)
    if not tail:
        head, tail = path.split(head)
    if head and tail and not path.exists(head):
        makedirs(head, exist_ok=True)
    try:
        mkdir(name, mode)
    except OSError:
        if not exist_ok or not path.isdir(name):
            raise


def fdopen(fd, mode="r", buffering=-1, encoding=None, *args, **kwargs):
    """A file object of a descriptor."""
    return io.open(fd, mode, buffering, encoding, *args, **kwargs)


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    import _whole_os

    value = globals()[name] = getattr(_whole_os, name)
    return value
