"""What the binary's interpreter does before the snapshot is taken, and with it at each start."""

import sys
from _frozen_importlib import BuiltinImporter, FrozenImporter


class NativeFinder:
    """On sys.meta_path: a built-in module by its full name, inside a package or not."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        """The module's spec, or None."""
        return BuiltinImporter.find_spec(name)


# Nothing is ever looked for in the file system.
sys.meta_path[:] = [FrozenImporter, NativeFinder]

import _signal  # noqa: E402
import gc  # noqa: E402
import os  # noqa: E402
import posix  # noqa: E402

from vmm.command.cli import main  # noqa: E402

# isort: split
# What `start` imports, each with all that it imports itself, so that it imports nothing
# (tests/kvm/test_start_imports.py). The other verbs' modules come when they are needed.
import _blake2  # noqa: E402, F401
import _socket  # noqa: E402, F401
import encodings.ascii  # noqa: E402, F401

from vmm.confine import lockdown  # noqa: E402, F401
from vmm.host import descriptors, preflight  # noqa: E402, F401
from vmm.log import sinks  # noqa: E402, F401
from vmm.run import instance, lifecycle, notify  # noqa: E402, F401

STREAMS = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))


def forget():
    """Let go of what belongs to the process that takes the snapshot."""
    for name, _ in STREAMS:
        setattr(sys, name, None)
        setattr(sys, f"__{name}__", None)
    sys.argv[:] = sys.orig_argv[:] = []
    posix.environ.clear()
    os.environ._data.clear()
    # It holds a name for each attribute that an import looked up: each entry that another attribute
    # takes is a reference dropped, on a page of the snapshot that is not asked for otherwise.
    sys._clear_type_cache()
    gc.collect()
    gc.freeze()


def adopt(arguments, variables, interruptible):
    """Take over arguments, environment, standard streams and SIGINT of this process."""
    sys.argv[:] = sys.orig_argv[:] = [os.fsdecode(argument) for argument in arguments]
    for variable in variables:
        name, equals, value = variable.partition(b"=")
        if equals and name:
            posix.environ.setdefault(name, value)
    os.environ._data.update(posix.environ)
    for fd, (name, mode) in enumerate(STREAMS):
        try:
            stream = open(fd, mode, encoding="utf-8", errors="backslashreplace", closefd=False)
        except OSError:
            continue  # it is closed, and stays None as in any Python
        if name == "stderr":
            stream.reconfigure(line_buffering=True)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    if interruptible:
        _signal.signal(_signal.SIGINT, _signal.default_int_handler)


def run(arguments, variables, interruptible):
    """The program; its exit code."""
    adopt(arguments, variables, interruptible)
    return main()


forget()
