"""Ten thousand executions while everything that can go wrong does: each request gets one true answer, nothing is left.

Thirty-two clients send programs that behave and misbehave; a pool far too small starves; templates are killed; clients
hang up while their programs run. What a request may get is known beforehand from its program alone, but for 429 and 503
with Retry-After, which are counted.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.support.service import STUCK_S, Service, running_service

EXECUTIONS = 10_000
CLIENTS = 32
KILL_EVERY_S = 0.7
SETTINGS = """
[pool]
size = 4
sizes = { "python-numpy" = 0, node = 1 }
[server]
log_level = "warning"
"""

Answer = dict[str, Any]
FORGED = (
    "import os, struct; os.write(63, struct.pack('=B3xIiIQQ', 69, 24, 5, 0, 0, 0)); os.write(1, b'late'); os._exit(9)"
)
BOMB = """
import os, time
try:
    while True:
        if os.fork() == 0:
            time.sleep(100)
except OSError:
    print("stopped")
"""
DAEMON = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(1000)
    os._exit(0)
os.wait()
print("daemon")
"""


@dataclass(frozen=True)
class Program:
    """A request and what its answer must be."""

    code: str
    true: Callable[[Answer], bool]
    language: str = "python"
    limits: dict[str, float] = field(default_factory=dict)
    weight: int = 1


def ended(outcome: str, code: int | None = None, stdout: str | None = None) -> Callable[[Answer], bool]:
    """Return whether an answer has this outcome and, when given, this exit code and output."""
    return lambda a: (
        a["outcome"] == outcome
        and (code is None or a["exit_code"] == code)
        and (stdout is None or a["stdout"] == stdout)
    )


PROGRAMS = {
    "print": Program("print(6 * 7)", ended("exited", 0, "42\n"), weight=60),
    "exit": Program("import sys; sys.exit(3)", ended("exited", 3, ""), weight=8),
    "_exit": Program("import os; os.write(1, b'x'); os._exit(7)", ended("exited", 7, "x"), weight=8),
    "raise": Program("1/0", lambda a: a["exit_code"] == 1 and "ZeroDivisionError" in a["stderr"], weight=8),
    "abort": Program("import os; os.abort()", ended("signalled", 134), weight=2),
    "kill itself": Program("import os; os.kill(os.getpid(), 9)", ended("signalled", 137), weight=2),
    "kill its init": Program(
        "import os\ntry: os.kill(1, 9)\nexcept OSError: print('no')", ended("exited", 0, "no\n"), weight=2
    ),
    # Its word or the kernel's, whichever comes first; both are its own doing.
    "forge the end": Program(FORGED, lambda a: a["exit_code"] in (5, 9) and a["stderr"] == "", weight=2),
    "write garbage": Program(
        "import os, time; os.write(63, b'?' * 64); time.sleep(60)", ended("policy_violation"), weight=2
    ),
    "flood": Program("while True: print('x' * 1000)", ended("output_limit"), limits={"output_bytes": 4096}, weight=2),
    "fork bomb": Program(BOMB, lambda a: a["stdout"].endswith("stopped\n"), limits={"pids": 12}),
    "eat memory": Program(
        "b = bytearray()\nwhile True: b += b'x' * (1 << 20)", ended("out_of_memory"), limits={"memory_bytes": 32 << 20}
    ),
    "sleep": Program("import time; time.sleep(60)", ended("timed_out"), limits={"wall_s": 0.2}),
    "daemon": Program(DAEMON, ended("exited", 0, "daemon\n"), weight=2),
    "bash": Program("echo $((6 * 7))", ended("exited", 0, "42\n"), language="bash", weight=3),
    "node": Program("console.log(6 * 7)", ended("exited", 0, "42\n"), language="node"),
}
HANG_UP = "hang up"


@dataclass
class Tally:
    """What came of the requests."""

    answers: Counter[str] = field(default_factory=Counter)
    refused: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    left: Iterator[int] = field(default_factory=lambda: iter(range(EXECUTIONS)))
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self) -> bool:
        """Take one execution from those that are left to do."""
        with self.lock:
            return next(self.left, None) is not None

    def note(self, name: str, status: int, headers: http.client.HTTPMessage, body: bytes) -> None:
        """Judge one answer."""
        with self.lock:
            if status in (429, 503) and headers["Retry-After"]:
                self.refused[status] += 1
            elif status == 200 and PROGRAMS[name].true(json.loads(body)):
                self.answers[name] += 1
            else:
                self.wrong.append(f"{name}: {status} {body[:600]!r}")


def client(address: str, tally: Tally, seed: int) -> None:
    """Send programs on one connection until none is left to send."""
    dice = random.Random(seed)
    names, weights = [*PROGRAMS, HANG_UP], [*(p.weight for p in PROGRAMS.values()), 2]
    connection = http.client.HTTPConnection(address, timeout=STUCK_S)
    while tally.take():
        (name,) = dice.choices(names, weights)
        if name == HANG_UP:
            leaving = http.client.HTTPConnection(address, timeout=STUCK_S)
            leaving.request("POST", "/v1/exec", json.dumps({"code": "import time; time.sleep(60)"}))
            leaving.close()
            with tally.lock:
                tally.answers[name] += 1
            continue
        program = PROGRAMS[name]
        body = {"code": program.code, "language": program.language, "limits": program.limits}
        connection.request("POST", "/v1/exec", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        tally.note(name, response.status, response.headers, response.read())
    connection.close()


def children(pid: int) -> list[int]:
    """Return the pids of a process' children."""
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def cgroups(service: Service) -> list[Path]:
    """Return the instance's cgroup directories, from the arguments of its janitor."""
    (janitor,) = children(service.process.pid)
    words = Path(f"/proc/{janitor}/cmdline").read_bytes().decode().split("\0")
    return [Path(word.partition("=")[2]) for word in words if "=/" in word]


def zygotes(keep: Path) -> list[int]:
    """Return the pids of the templates' interpreters; a child that was just forked is one pid namespace deeper."""
    found = []
    for pid in map(int, (keep / "cgroup.procs").read_text().split()):
        try:
            status = Path(f"/proc/{pid}/status").read_text()
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        namespaces = next(line for line in status.splitlines() if line.startswith("NSpid:")).split()[1:]
        if b"/proc/self/fd/" in words and len(namespaces) == 2:
            found.append(pid)
    return found


def kill_templates(keep: Path, over: threading.Event, killed: list[int]) -> None:
    """Kill a template every now and then."""
    dice = random.Random(1)
    while not over.wait(KILL_EVERY_S):
        alive = zygotes(keep)
        if alive:
            killed.append(dice.choice(alive))
            os.kill(killed[-1], signal.SIGKILL)


def settled(service: Service) -> tuple[int, int]:
    """Wait until nothing runs any more; return the open files and the resident KB of the server.

    Files of cgroups do not count: those of a slot stay open for its next tenant, and there are only so many slots.
    """
    until = time.monotonic() + STUCK_S
    while time.monotonic() < until:
        with service.client as http_client:
            health = http_client.get("/v1/health").json()["templates"]
        if health["python"]["ready"] and health["python"]["parked"] == 4 and health["node"]["parked"] == 1:
            break
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    resident = int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])
    links = [link.readlink() for link in Path(f"/proc/{service.process.pid}/fd").iterdir()]
    return len([link for link in links if not link.is_relative_to("/sys/fs/cgroup")]), resident


@pytest.mark.usefixtures("as_root")
def test_ten_thousand_executions_in_chaos_get_one_true_answer_each_and_leave_nothing(tmp_path: Path) -> None:
    with running_service(tmp_path, config=SETTINGS) as service:
        address = urlsplit(service.url).netloc
        groups = cgroups(service)
        files_before, _ = settled(service)
        tally, over, killed = Tally(), threading.Event(), []
        killer = threading.Thread(target=kill_templates, args=(groups[0] / "keep", over, killed))
        crowd = [threading.Thread(target=client, args=(address, tally, seed)) for seed in range(CLIENTS)]
        for thread in (killer, *crowd):
            thread.start()
        for thread in crowd:
            thread.join()
        over.set()
        killer.join()

        assert tally.wrong == []
        assert sum(tally.answers.values()) + sum(tally.refused.values()) == EXECUTIONS
        assert all(tally.answers[name] for name in PROGRAMS)
        assert sum(tally.answers.values()) > EXECUTIONS // 2
        assert killed
        files_after, resident_kb = settled(service)
        assert files_after <= files_before
        assert resident_kb < 200 << 10
        assert service.stop() == 0
    assert [group for group in groups if group.exists()] == []
