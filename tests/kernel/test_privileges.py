"""The server that faces HTTP holds no privilege once it has started."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import sandfork
from tests.support.service import Service

SOURCE = Path(sandfork.__file__).parents[1]
UID = 1_879_113_728


def status_of(pid: int) -> dict[str, list[str]]:
    """Return /proc/PID/status as words by name."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: words.split() for name, _, words in (line.partition(":") for line in lines)}


def run_as_root(code: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a process of its own that can import the package."""
    code = f"import sys; sys.path.insert(0, {str(SOURCE)!r})\n{code}"
    return subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.usefixtures("as_root")
def test_dropping_root_leaves_no_id_no_group_no_capability_and_no_way_back() -> None:
    done = run_as_root(
        "import os; from sandfork.linux.privileges import drop_privileges\n"
        f"drop_privileges({UID}, {UID})\n"
        "print(open('/proc/self/status').read())\n"
        "for attempt in (lambda: os.setuid(0), lambda: os.setgroups([0]), lambda: os.open('/etc/shadow', 0)):\n"
        "    try: attempt(); print('ALLOWED')\n"
        "    except PermissionError: print('refused')\n"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("refused") == 3
    assert "ALLOWED" not in done.stdout


@pytest.mark.usefixtures("as_root")
def test_the_same_attempts_succeed_for_root() -> None:
    done = run_as_root("import os; os.setgroups([0]); os.setuid(0); os.open('/etc/shadow', 0); print('allowed')")
    assert done.stdout == "allowed\n"


def test_the_running_server_is_unprivileged(service: Service) -> None:
    status = status_of(service.process.pid)
    assert os.getuid() == 0
    assert set(status["Uid"]) == set(status["Gid"])
    assert int(status["Uid"][0]) >= UID
    assert status["Groups"] == []
    assert status["NoNewPrivs"] == ["1"]
    for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert status[name] == ["0000000000000000"], name


def test_the_running_servers_memory_is_closed_to_its_own_uid(service: Service) -> None:
    uid = int(status_of(service.process.pid)["Uid"][0])
    done = run_as_root(
        f"import os; os.setgroups([]); os.setresgid({uid}, {uid}, {uid}); os.setresuid({uid}, {uid}, {uid})\n"
        f"try: os.open('/proc/{service.process.pid}/mem', os.O_RDONLY); print('ALLOWED')\n"
        "except PermissionError: print('refused')"
    )
    assert done.stdout == "refused\n", done.stderr
