"""What compiler and linker do against flaws in native code, for the modules and the executable.

Source: the OpenSSF's "Compiler Options Hardening Guide for C and C++". All of these are known to
gcc 12 and clang 15; an older gcc takes _FORTIFY_SOURCE=3 for 2. What the results hold is looked up
by tests/unit/packaging/test_hardening.py.
"""

from __future__ import annotations

# -O2, which _FORTIFY_SOURCE needs, is its users' own. Some builds of Python bring a 2 already.
COMPILE = [
    "-fstack-protector-strong",
    "-fstack-clash-protection",
    "-U_FORTIFY_SOURCE",
    "-D_FORTIFY_SOURCE=3",
    # Objects of ours are ready for it. What is linked is so only where all of it is: Debian's
    # crti.o, libc.a and libpython are not.
    "-fcf-protection=full",
]
# Nothing that is written to is executed; what was relocated is read-only before our code runs.
LINK = [
    "-Wl,-z,noexecstack",
    "-Wl,-z,relro",
    "-Wl,-z,now",
    "-Wl,-z,separate-code",
    # A relocation in code would make that writable for a moment: an error.
    "-Wl,-z,text",
]
