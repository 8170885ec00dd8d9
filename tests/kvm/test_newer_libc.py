"""The commands' tests with the next Debian's C library, whose system calls are others."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.guests.packages import unpacked
from tests.support.commands_tests import pass_with

SUITE = "trixie"
SECONDS = 1200
SOURCE = """
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
static char *words[] = {WORDS};
int main(int count, char **given) {
    char **all = calloc(sizeof words + sizeof(char *) * count, 1);
    memcpy(all, words, sizeof words);
    memcpy(all + sizeof words / sizeof *words, given + 1, sizeof(char *) * count);
    return execv(all[0], all);
}
"""
# Another user cannot run an interpreter of root's own, which that test sees of the installed one.
LEFT_OUT = "not another_users_instance"


@pytest.fixture
def command(tmp_path) -> Path:
    """The installed command, its interpreter loaded with that library.

    By a program, since a shell needs descriptors that the tests of limits do not leave it.
    """
    library = unpacked("libc6", SUITE)
    interpreter = Path(sys.executable)
    words = [
        library / "usr/lib64/ld-linux-x86-64.so.2", "--argv0", interpreter,
        "--library-path", library / "usr/lib/x86_64-linux-gnu",
        interpreter, interpreter.with_name("vllmd-hypervisor"),
    ]  # fmt: skip
    # JSON writes texts as C does.
    texts = ", ".join([json.dumps(str(word)) for word in words])
    source = tmp_path / "wrapper.c"
    source.write_text(SOURCE.replace("WORDS", texts))
    wrapper = tmp_path / "vllmd-hypervisor"
    subprocess.run(["gcc", "-O1", "-static", "-o", wrapper, source], check=True)
    return wrapper


@pytest.mark.full
@pytest.mark.timeout(SECONDS)
def test_no_thread_makes_a_call_that_its_filter_lacks(command):
    pass_with(command, "not waits", "-k", LEFT_OUT)
