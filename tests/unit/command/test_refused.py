"""What the host refuses is told with what helps, whatever it is raised as."""

from __future__ import annotations

import errno

import pytest

from vmm._native.host.fd import IoctlError
from vmm.command.cli import refused


@pytest.mark.parametrize(
    ("error", "problem", "remedy"),
    [
        (MemoryError(), "no memory is left", "free memory"),
        (ImportError("x.so: failed to map segment from shared object"), "x.so", "free memory"),
        (OSError(errno.EMFILE, "Too many open files"), "Too many", "ulimit"),
        (OSError(errno.ENOSPC, "No space left"), "No space", "free space on the file system"),
        (IoctlError(errno.ENOSPC, "KVM_IOEVENTFD"), "KVM_IOEVENTFD", "kernel's log"),
        (IoctlError(errno.ENOMEM, "KVM_CREATE_VM"), "KVM_CREATE_VM", "free memory"),
    ],
)
def test_message_and_remedy(error, problem, remedy):
    told = refused(error)
    assert told.exit_code == 38
    assert problem in told.problem
    assert remedy in told.remedy


def test_a_module_that_is_missing_is_a_bug():
    with pytest.raises(ImportError):
        refused(ImportError("No module named 'nothing'"))
