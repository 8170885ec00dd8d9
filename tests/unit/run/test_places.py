"""Where instances are looked for, and what is said when there is none."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from vmm.errors import ConfigError, UnknownInstanceError
from vmm.run.instance import FOLDER, Instance
from vmm.run.places import NAMES_MAX, Places


@pytest.fixture
def run():
    # A socket's path has 107 bytes at most, of which pytest's folders would take too many.
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        for base in ("vllmd", f"user/{os.geteuid()}", "user/77", "own"):
            (Path(name) / base).mkdir(parents=True)
        yield Path(name)


def make(base, name: str) -> Instance:
    instance = Instance(name, {"XDG_RUNTIME_DIR": str(base)})
    instance.acquire()
    return instance


def places(run) -> Places:
    return Places({"XDG_RUNTIME_DIR": str(run / "own")}, str(run))


def test_all_places_are_looked_at(run):
    bases = [run / "own", run, run / "vllmd", run / f"user/{os.geteuid()}"]
    bases += [run / "user/77"] if os.geteuid() == 0 else []
    for number, base in enumerate(bases):
        make(base, f"vm{number}").release()
    found = places(run)
    assert found.known == [(f"{base}/{FOLDER}", f"vm{n}") for n, base in enumerate(bases)]
    for number, base in enumerate(bases):
        folder = found.find(f"vm{number}")
        assert folder.place == f"{base}/{FOLDER}"
        folder.close()


def test_each_instance_of_the_service_has_a_folder(run):
    for name in ("a", "b"):
        (run / "vllmd" / name).mkdir()
        make(run / "vllmd" / name, name).release()
    found = places(run)
    assert found.known == [(f"{run}/vllmd/{name}/{FOLDER}", name) for name in ("a", "b")]
    folder = found.find("b")
    assert folder.place == f"{run}/vllmd/b/{FOLDER}"
    folder.close()


def test_folders_that_a_stranger_has_made_are_none_of_the_service(run):
    if os.geteuid() != 0:
        pytest.skip("needs root: a folder of another user's")
    (run / "vllmd/a").mkdir()
    make(run / "vllmd/a", "a").release()
    os.chown(run / "vllmd", 4242, -1)
    assert places(run).known == []
    os.chown(run / "vllmd", 0, -1)
    assert len(places(run).known) == 1


def test_folders_that_may_not_be_listed_are_told(run, monkeypatch):
    real = os.listdir

    def closed(path):
        if str(path) == f"{run}/vllmd":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "listdir", closed)
    with pytest.raises(UnknownInstanceError, match=f"no permission to look into {run}/vllmd "):
        places(run).find("llama")


def test_the_one_that_runs_is_meant(run):
    make(run / "own", "vm").release()
    service = make(run / "vllmd", "vm")
    folder = places(run).find("vm")
    assert folder.place == f"{run}/vllmd/{FOLDER}"
    folder.close()
    service.release()
    folder = places(run).find("vm")
    assert folder.place == f"{run}/own/{FOLDER}"
    folder.close()


def test_an_own_one_comes_first(run):
    held = [make(run / base, "vm") for base in ("own", "vllmd")]
    folder = places(run).find("vm")
    assert folder.place == f"{run}/own/{FOLDER}"
    folder.close()
    for instance in held:
        instance.release()


@pytest.mark.parametrize(
    "name", ["", "vn", "vm ", "VM", ".", "..", "a/b", "vm/", "vm\0", "\x1b[2J"]
)
def test_what_is_not_known_is_said(run, name):
    make(run / "own", "vm").release()
    make(run / "vllmd", "llama").release()
    with pytest.raises(UnknownInstanceError) as caught:
        places(run).find(name)
    assert caught.value.exit_code == 4
    assert f"known: vm, {run}/vllmd/{FOLDER}/llama" in str(caught.value)
    assert str(caught.value).isprintable()


def test_without_a_name_only_the_own_one_is_meant(run):
    make(run / "vllmd", "llama").release()
    with pytest.raises(ConfigError, match="which instance.*llama"):
        places(run).find(None)
    make(run / "own", "vm").release()
    folder = places(run).find(None)
    assert folder.name == "vm"
    folder.close()
    make(run / "own", "vm2").release()
    with pytest.raises(ConfigError, match="which instance"):
        places(run).find(None)


def test_places_that_are_closed_are_told(run, monkeypatch):
    real = os.stat

    def closed(path, **options):
        if str(path).startswith(f"{run}/vllmd/"):
            raise PermissionError(13, "Permission denied")
        return real(path, **options)

    monkeypatch.setattr(os, "stat", closed)
    with pytest.raises(UnknownInstanceError, match=f"no permission to look into {run}/vllmd/"):
        places(run).find("llama")


def test_a_place_without_end_costs_little(run):
    place = run / "own" / FOLDER
    for number in range(NAMES_MAX + 200):
        (place / f"n{number:05}").mkdir(parents=True)
        (place / f"n{number:05}" / "lock").touch()
    make(run / "vllmd", "llama").release()
    descriptors = len(os.listdir("/proc/self/fd"))
    found = places(run)
    folder = found.find("llama")
    assert len(os.listdir("/proc/self/fd")) == descriptors + 2
    folder.close()
    assert len(found.known) == NAMES_MAX + 1
    assert len(found.told()) < 1000


def test_no_place_of_one_s_own(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    with pytest.raises(UnknownInstanceError, match="known: none"):
        Places({}, str(tmp_path)).find("vm")
