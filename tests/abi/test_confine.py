"""Numbers of the tables of system calls and of Landlock's rules, against the kernel's headers."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from vmm.confine import assembler, rules, tables
from vmm.host import files

IOCTLS = {
    **tables.KVM_RUN, **tables.KVM_OF_VCPUS, **tables.VFIO_OF_VCPUS, **tables.BLKDISCARD,
    **tables.OF_TERMINALS, **tables.OF_FILES,
}  # fmt: skip
FLAGS = (
    "PROT_WRITE", "PROT_EXEC", "MAP_ANONYMOUS", "MADV_DONTNEED", "MADV_POPULATE_WRITE",
    "PR_SET_NAME", "PR_GET_NAME", "AF_UNIX", "SECCOMP_SET_MODE_FILTER", "CLONE_VM", "CLONE_THREAD",
)  # fmt: skip
RIGHTS = (
    "WRITE_FILE", "READ_FILE", "READ_DIR", "REMOVE_DIR", "REMOVE_FILE", "MAKE_REG", "MAKE_SOCK",
)  # fmt: skip
EXPECTED = {
    **IOCTLS,
    **tables.FCNTL,
    **{name: getattr(tables, name) for name in FLAGS},
    **{f"LANDLOCK_ACCESS_FS_{name}": getattr(rules, name) for name in RIGHTS},
    "O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC":
        tables.FRESH_FILE,
    "CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID"
    " | CLONE_NEWNET": tables.CLONE_NEW,
    "CAP_IPC_LOCK": files.CAP_IPC_LOCK,
    "AUDIT_ARCH_X86_64": assembler.ARCH_X86_64,
    "SECCOMP_RET_ALLOW": assembler.RET_ALLOW,
    "SECCOMP_RET_ERRNO": assembler.RET_ERRNO,
    "SECCOMP_RET_TRAP": assembler.RET_TRAP,
    "BPF_LD | BPF_W | BPF_ABS": assembler.LOAD,
    "BPF_ALU | BPF_AND | BPF_K": assembler.AND,
    "BPF_JMP | BPF_JA": assembler.GO,
    "BPF_JMP | BPF_JEQ | BPF_K": assembler.EQUAL,
    "BPF_JMP | BPF_JGE | BPF_K": assembler.AT_LEAST,
    "BPF_RET | BPF_K": assembler.RETURN,
    "offsetof(struct seccomp_data, arch)": assembler.ARCH_AT,
    "offsetof(struct seccomp_data, args)": assembler.ARGS_AT,
    # Such headers know the calls up to this one at least.
    **{f"__NR_{name}": number for name, number in assembler.call_numbers().items()},
}  # fmt: skip
SOURCE = """
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <asm/unistd_64.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/fs.h>
#include <linux/kvm.h>
#include <linux/landlock.h>
#include <linux/seccomp.h>
#include <linux/vfio.h>
#include "iommufd_compat.h"
int main(void) {
%s
    return 0;
}
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc (apt-get install gcc libc6-dev)")
    folder = tmp_path_factory.mktemp("confine")
    lines = [
        f'#ifdef {expression}\n    printf("%lu\\n", (unsigned long)({expression}));\n#else\n'
        '    puts("none");\n#endif'
        if expression.startswith("__NR_")
        else f'    printf("%lu\\n", (unsigned long)({expression}));'
        for expression in EXPECTED
    ]
    (folder / "probe.c").write_text(SOURCE % "\n".join(lines))
    include = ["-I", str(assembler.NAMES.parent)]
    subprocess.run(
        ["gcc", "-Wno-cpp", *include, "-o", folder / "probe", folder / "probe.c"], check=True
    )
    out = subprocess.run([folder / "probe"], check=True, capture_output=True, text=True).stdout
    return dict(zip(EXPECTED, out.split(), strict=True))


def test_every_number_is_the_kernels(found):
    wrong = {
        expression: (found[expression], number)
        for expression, number in EXPECTED.items()
        if found[expression] != "none" and int(found[expression]) & (1 << 32) - 1 != number
    }
    assert not wrong


def test_calls_that_the_headers_do_not_know_are_newer_than_they(found):
    unknown = [name for name in EXPECTED if found[name] == "none"]
    newest = max(
        int(found[name]) for name in EXPECTED if name[:5] == "__NR_" and name not in unknown
    )
    assert all(EXPECTED[name] > newest for name in unknown)
