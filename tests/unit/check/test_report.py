"""`check`'s report: exit codes, words, incomplete settings; and how findings become errors."""

from __future__ import annotations

import os

import pytest

from tests.support.fake_host import FakeHost
from vmm.check import files, resources
from vmm.check.report import Report, examine
from vmm.errors import BusyError, ConfigError, HostError
from vmm.host.finding import Finding, problem, refuse, warning
from vmm.settings.config import PREFIX, SETTINGS, survey
from vmm.settings.memory import MemoryConfig
from vmm.settings.parse import Endpoint

FINE = Finding("a", "all is well")


def bad(code: int) -> Finding:
    return problem("b", f"bad {code}", code=code)


@pytest.mark.parametrize(
    ("stages", "code"),
    [
        ([[FINE], [warning("w", "hm")]], 0),
        ([[FINE], [bad(38)]], 38),
        ([[], [bad(38), bad(2)]], 2),
        ([[bad(39)], [bad(2)]], 39),
        ([[FINE], [], [bad(39), bad(38)]], 38),
    ],
)
def test_the_first_stage_decides(stages, code):
    assert Report("vm", "alice", 1000, stages).exit_code == code


def test_a_report_in_words():
    cured = problem("kvm", "no\nrights", cure=["do this", "and that"], advice="log in again")
    other = problem("instance", "it runs", cure=["stop it"], as_root=False, code=39)
    text = Report("vm", "alice", 1000, [[FINE, cured], [other]]).text()
    assert text.split("\n") == [
        "ok       a         all is well",
        "problem  kvm       no; rights",
        "                     as root: do this",
        "                     as root: and that",
        "                     advice: log in again",
        "problem  instance  it runs",
        "                     cure: stop it",
        "problems: 2, warnings: 0; start would end with exit code 38",
    ]


def test_the_schema_stays():
    facts = Report("vm", "alice", 1000, [[problem("kvm", "no", "/dev/kvm", cure=["x"])]]).facts()
    assert list(facts) == ["schema_version", "version", "name", "user", "exit_code", "findings"]
    assert facts["user"] == {"name": "alice", "uid": 1000}
    assert facts["findings"] == [
        {
            "name": "kvm", "subject": "/dev/kvm", "level": "problem", "found": "no",
            "cure": ["x"], "as_root": True, "advice": "", "exit_code": 38,
        }
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("codes", "kind"), [([38, 2], ConfigError), ([39, 38], HostError), ([39], BusyError)]
)
def test_refusing_tells_all(codes, kind):
    findings = [FINE, *[bad(code) for code in codes]]
    with pytest.raises(kind) as told:
        refuse(findings)
    for code in codes:
        assert f"bad {code}" in str(told.value)
    refuse([FINE, warning("w", "hm")])


def test_every_bad_setting_and_every_bad_item():
    values, _, problems = survey(
        {
            f"{PREFIX}CPU_COUNT": "many",
            f"{PREFIX}MEMORY_CONFIG": "size=x,shraed=on,prefault=perhaps",
            f"{PREFIX}DEVICE_FILEPATH_LIST": "first,0000:01:00.0,/dev/second",
            f"{PREFIX}SYSTEM_IMAGE_FILEPATH": "/a.img,~/b.img,$C/c.img",
        }
    )
    told = dict(problems)
    assert set(told) == {
        PREFIX + name
        for name in ("CPU_COUNT", "MEMORY_CONFIG", "DEVICE_FILEPATH_LIST", "SYSTEM_IMAGE_FILEPATH",
                     "KERNEL_FILEPATH", "CONFIG_IMAGE_FILEPATH")
    }  # fmt: skip
    for variable, words in (
        ("MEMORY_CONFIG", ["size: 'x'", "'shraed' (did you mean shared?)", "prefault"]),
        ("DEVICE_FILEPATH_LIST", ["'first'", "'/dev/second'"]),
        ("SYSTEM_IMAGE_FILEPATH", ["'~/b.img'", "'$C/c.img'"]),
    ):
        for word in words:
            assert word in told[PREFIX + variable]
    assert set(values) == {setting.field for setting in SETTINGS} - {
        "cpu_count", "memory", "devices", "system_images", "kernel_path", "config_images",
    }  # fmt: skip


def test_incomplete_settings_leave_the_rest_checked(tmp_path, tmp_path_factory):
    host_files = tmp_path_factory.mktemp("host")
    image = tmp_path / "disk.img"
    image.write_bytes(b"")
    report = examine(
        {
            # Short, because its socket's path may not have more than 107 bytes.
            f"{PREFIX}NAME": "vm",
            f"{PREFIX}SYSTEM_IMAGE_FILEPATH": str(image),
            f"{PREFIX}MEMORY_CONFIG": "size=16M",
            f"{PREFIX}LOG_FILEPATH": f"{tmp_path}/logs/vm.log,/proc/none/log",
            "XDG_RUNTIME_DIR": str(tmp_path),
        },
        FakeHost(host_files),
    )
    assert report.exit_code == 2
    bad = {finding.name: finding for finding in report.findings if finding.code}
    assert set(bad) == {"setting", "log", "image-lock", "kvm-node"}
    assert "less than one sector" in bad["image-lock"].found
    assert "/proc/none/log" in bad["log"].found
    assert os.listdir(tmp_path) == ["disk.img"]  # nothing was made


def test_files_that_could_not_be_made(tmp_path):
    def told(kind, path):
        (finding,) = files.consoles([("console", Endpoint(kind, str(path)))])
        return finding.found

    assert "No such file or directory" in told("file", tmp_path / "none/log")
    assert "Is a directory" in told("file", tmp_path)
    assert told("file", tmp_path / "log") == f"console is file {tmp_path}/log"
    assert "are possible" in told("socket", "/" + "x" * 200)
    (tmp_path / "plain").write_text("")
    assert "Address already in use" in told("socket", tmp_path / "plain")
    assert "cannot listen" in told("socket", tmp_path / "none/socket")


REFUSED = "clone: Operation not permitted"


@pytest.mark.parametrize(
    ("file", "content", "advice"),
    [
        ("kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone=1"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1",
         "kernel.apparmor_restrict_unprivileged_userns=0"),
        ("user/max_user_namespaces", "0", "user.max_user_namespaces=10000"),
        ("kernel/unprivileged_userns_clone", "1", None),
    ],
)  # fmt: skip
def test_small_pages_have_a_cure(tmp_path, monkeypatch, file, content, advice):
    class Refused:
        refused, backing = REFUSED, "memfd"

        def close(self) -> None:
            pass

    monkeypatch.setattr("vmm.memory.map_ram", lambda config: Refused())
    host = FakeHost(tmp_path, {f"/proc/sys/{file}": content})
    (found,) = resources.guest_ram(MemoryConfig(16 << 20, shared=True), host)
    assert (found.level, found.name, found.code) == ("warning", "memory-pages", 0)
    assert REFUSED in found.found
    assert found.cure == ("echo advise >/sys/kernel/mm/transparent_hugepage/shmem_enabled",)
    assert found.as_root
    assert (advice in found.advice) if advice else found.advice == ""
