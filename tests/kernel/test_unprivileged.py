"""A plain user starts the service without any configuration: everything but what takes cgroups is as it is for root.

Without a cgroup memory and processor time are limited for each process only; the number of processes is a sandbox's
own, for the kernel counts them in its user namespace. All that is said at the start, in health and by the doctor.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.process import guest_packages
from tests.support.remains import is_alive, settles
from tests.support.service import Service, run_command, running_service
from tests.support.sessions import session_of

NOBODY = 65534
AS_NOBODY = ("setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups")


@pytest.fixture(scope="module")
def scratch(as_root: None) -> Iterator[Path]:
    """A directory that a plain user can enter, unlike pytest's own."""
    path = Path(tempfile.mkdtemp(prefix="sandfork-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def unprivileged(scratch: Path) -> Iterator[Service]:
    with running_service(scratch, prefix=AS_NOBODY) as service:
        yield service


def test_a_plain_user_starts_it_without_configuration_and_is_told_what_is_not_enforced(unprivileged: Service) -> None:
    with unprivileged.client as client:
        health = client.get("/v1/health").json()
    assert health["isolation"] == "process"
    memory, cpu, cpus = health["unenforced_limits"]
    assert [limit.split(":")[0] for limit in (memory, cpu, cpus)] == ["memory limit", "cpu limit", "cpus limit"]
    assert all("of each process only" in limit for limit in (memory, cpu))
    assert "memory limit: of each process only" in unprivileged.log.read_text()


def test_the_doctor_of_a_plain_user_finds_every_primitive_and_names_the_limits(scratch: Path) -> None:
    done = run_command("doctor", "--json", cwd=scratch, prefix=AS_NOBODY)
    assert done.returncode == 0, done.stderr
    checks = json.loads(done.stdout)
    assert {check["state"] for check in checks if check["area"] == "primitive"} == {"ok"}
    (tier,) = [check for check in checks if check["area"] == "tier"]
    assert tier["state"] == "accepted"
    assert "memory limit: of each process only" in tier["told"]


@pytest.mark.parametrize(
    ("language", "code"),
    [("python", "print(1+1)"), ("node", "console.log(1+1)"), ("bash", "echo $((1+1))")],
)
def test_programs_run_in_namespaces_of_their_own(unprivileged: Service, language: str, code: str) -> None:
    assert unprivileged.exec(code, language)["stdout"] == "2\n"
    shown = unprivileged.exec("import os; print(os.getuid(), os.getpid(), os.getcwd(), *os.listdir('/proc/self/ns'))")
    assert shown["stdout"].split()[:3] == ["1000", "2", "/sandbox"]


@pytest.mark.skipif(guest_packages() is None, reason="no packages are installed beside the service")
def test_numpy_is_there(unprivileged: Service) -> None:
    assert unprivileged.exec("import numpy; print(numpy.arange(3).sum())")["stdout"] == "3\n"


FORKS = """
import os, time
made = 0
try:
    while made < 40:
        if os.fork() == 0: time.sleep(60)
        made += 1
except OSError as error:
    print(error.strerror, made)
"""
MEMORY = "b = bytearray(300 << 20); b[::4096] = bytes(len(b) // 4096); print('had it')"
FILL = "f = open('x', 'wb')\nfor _ in range(96): f.write(bytes(1 << 16))\nprint('had it')"


def test_processes_are_limited_for_the_sandbox_and_not_for_its_user(unprivileged: Service) -> None:
    for _ in range(2):
        assert unprivileged.exec(FORKS, limits={"pids": 10})["stdout"] == "Resource temporarily unavailable 9\n"
    assert unprivileged.exec(FORKS, limits={"pids": 50})["stdout"] == ""


def test_memory_of_a_process_and_its_disk_are_limited(unprivileged: Service) -> None:
    small = unprivileged.exec(MEMORY, limits={"memory_bytes": 128 << 20})
    assert "MemoryError" in small["stderr"]
    assert unprivileged.exec(MEMORY, limits={"memory_bytes": 600 << 20})["stdout"] == "had it\n"
    assert unprivileged.exec(FILL, limits={"disk_bytes": 4 << 20})["outcome"] == "disk_limit"
    assert unprivileged.exec(FILL, limits={"disk_bytes": 16 << 20})["stdout"] == "had it\n"


def test_processor_time_stops_a_process(unprivileged: Service) -> None:
    assert unprivileged.exec("while True: pass", limits={"cpu_s": 0.2})["outcome"] == "cpu_limit"


def test_processors_at_a_time_are_processor_time_and_the_reply_says_so(unprivileged: Service) -> None:
    reply = unprivileged.exec("while True: pass", limits={"cpus": 0.1, "wall_s": 5})
    assert (reply["outcome"], reply["limits"]["cpus"], reply["limits"]["cpu_s"]) == ("cpu_limit", None, 0.5)
    with unprivileged.client as client:
        told = client.get("/v1/health").json()["unenforced_limits"]
    assert "cpus limit: as processor time within the wall time, not as a rate" in told


def test_processors_of_a_session_are_processor_time_of_each_step(unprivileged: Service) -> None:
    with session_of(unprivileged, limits={"cpus": 0.1}) as session:
        reply = session.run("while True: pass", limits={"wall_s": 5}, fresh=True)
        assert (reply["outcome"], reply["limits"]["cpus"], reply["limits"]["cpu_s"]) == ("cpu_limit", None, 0.5)


def test_a_process_that_cannot_limit_itself_is_limited_from_outside(unprivileged: Service) -> None:
    ask = "ulimit -d; ulimit -p; ulimit -n; ulimit -t"
    code = f"process.stdout.write(require('child_process').execSync('{ask}'))"
    limits = {"memory_bytes": 333 << 20, "pids": 33, "open_files": 99, "cpu_s": 7}
    # One more process than was asked for: the sandbox's own init counts, too.
    assert unprivileged.exec(code, "node", limits=limits)["stdout"].split() == [str(333 << 10), "34", "99", "7"]


def test_a_limit_cannot_be_raised_again(unprivileged: Service) -> None:
    code = """
import resource
for which in (resource.RLIMIT_NPROC, resource.RLIMIT_DATA):
    hard = resource.getrlimit(which)[1]
    try: resource.setrlimit(which, (hard + 1, hard + 1)); print("raised")
    except ValueError: print("refused")
"""
    assert unprivileged.exec(code)["stdout"] == "refused\nrefused\n"
    assert resource.getrlimit(resource.RLIMIT_DATA)[1] == resource.RLIM_INFINITY


def test_usage_is_what_wait4_tells(unprivileged: Service) -> None:
    usage = unprivileged.exec("b = bytearray(100 << 20); x = sum(range(3_000_000)); print(1)")["usage"]
    assert usage["memory_peak_bytes"] > 100 << 20
    assert usage["cpu_user_s"] + usage["cpu_system_s"] > 0.01


def test_the_kernel_takes_a_program_first_when_memory_is_short(unprivileged: Service) -> None:
    assert unprivileged.exec("print(open('/proc/self/oom_score_adj').read().strip())")["stdout"] == "1000\n"


def test_nothing_outlives_a_service_that_is_killed(scratch: Path) -> None:
    with running_service(scratch, prefix=AS_NOBODY) as service:
        service.exec("import os, time\nif os.fork() == 0:\n    os.setsid(); time.sleep(3600)")
        family = descendants(service.process.pid)
        assert len(family) > 3
        service.stop(signal.SIGKILL)
    assert settles(lambda: not any(map(is_alive, family)))


def descendants(pid: int) -> list[int]:
    """Return every process below `pid`."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        try:
            child, parent = int(name), Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[1]
        except (OSError, ValueError):
            continue
        children.setdefault(int(parent), []).append(child)
    found, left = [], [pid]
    while left:
        below = children.get(left.pop(), [])
        found += below
        left += below
    return found
