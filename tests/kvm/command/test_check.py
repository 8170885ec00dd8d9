"""`check` says beforehand what a start would meet."""

from __future__ import annotations

import json

from tests.support.command import HALT, Command, finish


def findings(command: Command) -> tuple[int, dict[str, dict]]:
    """`check --json`: exit code, and the problems by name."""
    code, text = command.run("check", "--json")
    report = json.loads(text)
    assert report["exit_code"] == code
    return code, {f["name"]: f for f in report["findings"] if f["level"] == "problem"}


def test_check_before_beside_and_after_a_guest(tmp_path):
    """Nothing wrong; then who runs it and holds its images, with the way to end that."""
    command = Command(tmp_path, HALT, CPU_COUNT=1)
    assert findings(command) == (0, {})
    before = sorted(path.name for path in tmp_path.iterdir())
    process = command.start()
    try:
        code, problems = findings(command)
        assert code == 39
        assert set(problems) == {"instance", "image-lock"}
        assert str(process.pid) in problems["instance"]["found"]
        for finding in problems.values():
            assert finding["cure"] == ["vllmd-hypervisor stop vm"]
            assert not finding["as_root"]
        # An instance of somebody else's: by its process.
        command.env["XDG_RUNTIME_DIR"] = str(tmp_path / "vllmd-hypervisor")
        assert findings(command)[1]["image-lock"]["cure"] == [f"kill {process.pid}"]
        command.env["XDG_RUNTIME_DIR"] = str(tmp_path)
    finally:
        process.kill()
        finish(process)
    assert findings(command) == (0, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [*before, "vllmd-hypervisor", ".cache"]
    )
