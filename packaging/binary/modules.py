"""What goes into the binary: where the search starts, what is built in, what stays out and why."""

from __future__ import annotations

# The search for imports starts here. The first two are what the interpreter itself imports before
# any code of ours runs; the encodings are looked up by name when a text file is opened.
ROOTS = (
    "encodings",
    "encodings.utf_8",
    "encodings.ascii",
    "encodings.latin_1",
    "codecs",
    "io",
    "abc",
    "vmm.command.cli",
)

# C modules of libpython3.11.a that are linked in. Others of the archive stay out; a module that is
# needed, and is neither here nor LEFT_OUT, fails the build.
BUILTIN = (
    "_abc", "_blake2", "_codecs", "_collections", "_functools", "_io", "_locale", "_operator",
    "_signal", "_socket", "_sre", "_stat", "_struct", "_thread", "_weakref", "atexit", "binascii",
    "errno", "fcntl", "itertools", "math", "posix", "select", "time", "zlib",
)  # fmt: skip

# Modules that libpython3.11.a has frozen itself (Python/frozen.c). The search goes through them.
IN_LIBRARY = (
    "_collections_abc", "_sitebuiltins", "abc", "codecs", "genericpath", "io", "ntpath",
    "posixpath", "stat", "importlib.util", "importlib.machinery", "runpy",
)  # fmt: skip

# Made by the interpreter itself, in every Python.
CORE = (
    "marshal", "_imp", "_ast", "_tokenize", "builtins", "sys", "gc", "_warnings", "_string",
    "_frozen_importlib", "_frozen_importlib_external", "zipimport",
)  # fmt: skip

# Others' code that the linker takes from this machine, by the names that the compiler knows it by.
LINKED = ("crt1.o", "libgcc.a", "libc.a", "libm.a", "liburing.a", "libz.a")

_WINDOWS = "for Windows"
# Module -> why it is not needed. Everything below it is left out with it.
LEFT_OUT = {
    "nt": _WINDOWS,
    "winreg": _WINDOWS,
    "os.path": "os itself makes it",
    "importlib.metadata": "what pip installed; the executable has a list of its own",
    "numpy": "the face of guest memory for scripts, which have a Python of their own",
}
