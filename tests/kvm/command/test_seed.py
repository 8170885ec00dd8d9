"""`seed`: the command makes what the guest's cloud-init reads, and a VM takes it as its disk."""

from __future__ import annotations

import subprocess

import pytest

from tests.support.command import Command

CONTENTS = {
    "user-data": "#cloud-config\n",
    "meta-data": "instance-id: one\n",
    "network-config": "version: 2\n",
}


@pytest.fixture
def vm(tmp_path) -> Command:
    for name, content in zip(("user", "meta", "net"), CONTENTS.values(), strict=True):
        (tmp_path / name).write_text(content)
    return Command(tmp_path)


def test_a_seed_is_made_and_a_vm_starts_with_it(vm, tmp_path):
    seed = str(tmp_path / "seed.img")
    assert vm.run("seed", *[str(tmp_path / n) for n in ("user", "meta", "net")], seed) == (0, "")
    for name, content in CONTENTS.items():
        words = ["mtype", "-i", seed, f"::{name}"]
        assert subprocess.check_output(words, text=True) == content
    code, told = vm.set(CONFIG_IMAGE_FILEPATH=seed).run("start")
    assert (code, "hello" in told) == (0, True), told


def test_settings_are_not_asked(vm, tmp_path):
    """A wrong setting is no business of a verb that uses none."""
    vm.set(CPU_COUNT="many", NO_SUCH=1)
    words = [str(tmp_path / name) for name in ("user", "meta", "seed.img")]
    assert vm.run("seed", *words) == (0, "")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "seed needs more words; it takes: seed USER-DATA META-DATA [NETWORK-CONFIG] FILE"),
        (["a", "b"], "seed needs more words"),
        (["a", "b", "c", "d", "e"], "'e' is one word too many"),
        (["--force", "a", "b", "c"], "seed knows no --force"),
        (["/nowhere", "meta", "seed.img"], "user-data: /nowhere: No such file or directory"),
    ],
)
def test_what_is_refused(vm, words, told):
    code, said = vm.run("seed", *words)
    assert (code, told in said) == (2, True), said


def test_a_disk_is_not_overwritten(vm, tmp_path):
    words = [str(tmp_path / name) for name in ("user", "meta", "system.img")]
    code, said = vm.run("seed", *words)
    assert (code, "system.img is there, and no seed" in said) == (2, True), said
    assert (tmp_path / "system.img").read_bytes() == bytes(1 << 20)


def test_a_warning_is_no_failure(vm, tmp_path):
    (tmp_path / "user").write_text("hostname: x\n")
    words = [str(tmp_path / name) for name in ("user", "meta", "seed.img")]
    code, said = vm.run("seed", *words)
    assert (code, "warning: " in said, "hostname: x" in said) == (0, True, True), said
