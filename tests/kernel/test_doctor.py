"""`sandfork doctor` on this host: what it says agrees with what a start does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.service import run_command


@pytest.mark.usefixtures("as_root")
def test_the_doctor_tries_every_primitive_and_finds_the_service_able_to_start(tmp_path: Path) -> None:
    done = run_command("doctor", "--json", cwd=tmp_path)
    checks = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    by_area: dict[str, dict[str, str]] = {}
    for check in checks:
        by_area.setdefault(check["area"], {})[check["name"]] = check["state"]
    assert by_area["tier"] == {"process": "ok"}
    assert set(by_area["primitive"].values()) == {"ok"}
    assert {"pid namespace", "mnt namespace", "net namespace", "user namespace", "seccomp", "landlock"} <= set(
        by_area["primitive"]
    )
    assert {"memory limit", "pids limit", "disk limit", "capabilities", "no_new_privs"} <= set(by_area["primitive"])
    assert by_area["template"]["python"] == "ok"


@pytest.mark.usefixtures("as_root")
def test_the_doctor_prints_a_line_for_each_check(tmp_path: Path) -> None:
    shown = run_command("doctor", cwd=tmp_path).stdout.decode()
    for words in ("kernel", "landlock", "pid namespace", "memory limit", "python-numpy", "starts and enforces"):
        assert words in shown
