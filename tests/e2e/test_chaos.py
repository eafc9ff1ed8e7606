"""Ten thousand executions while everything that can go wrong does: each request gets one true answer, nothing is left.

Thirty-two clients send programs that behave and misbehave, follow streams and live in sessions; a pool far too small
starves; templates are killed; clients hang up while their programs run, in the middle of a stream or of a session's
step. What a request may get is known beforehand from its program alone. A refusal that says when to come back is
counted, and the request is sent again later, until it has its answer.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
from collections import Counter, deque
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import uvloop

from sandfork.linux.cgroup import processes_below
from tests.e2e.chaos_programs import PROGRAMS
from tests.e2e.chaos_sessions import CLIENTS as CHAOS_CLIENTS
from tests.e2e.chaos_sessions import Line, Refused, Reply, Untrue
from tests.support.remains import command_line, is_alive, mounts, opened_by, settles
from tests.support.service import STUCK_S, Service, running_service

CLIENTS = 32
KILL_EVERY = 200
FEW_FILES = 260
SETTINGS = """
[pool]
size = 4
sizes = { "python-numpy" = 0, node = 1, command = 1 }
[access]
rate_per_s = 1000000
[server]
log_level = "warning"
"""
PARKED = {"python": 4, "node": 1, "command": 1}
HANG_UPS = {"hang up at once": 2.0, "hang up in the middle": 0.5}
SLEEP_LONG = json.dumps({"code": "import time; time.sleep(3600)"}).encode()


@dataclass
class Tally:
    """What came of the requests; `todo` holds those that have no answer yet, by their number and kind."""

    todo: deque[tuple[int, str]]
    instance: Instance
    answers: Counter[str] = field(default_factory=Counter)
    refused: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    killed: list[int] = field(default_factory=list)

    def take(self) -> tuple[int, str]:
        """Take a request; every now and then the templates of Python die just before it."""
        number, name = self.todo.popleft()
        if number % KILL_EVERY == 50 and number not in self.killed:
            self.killed += [number] if self.instance.kill_zygotes() else []
        return number, name

    def put_off(self, number: int, name: str, refusal: Reply) -> None:
        """Have a request sent again later."""
        self.refused[refusal.status] += 1
        self.todo.append((number, name))

    def judge(self, number: int, name: str, token: str, reply: Reply) -> None:
        """Count one reply to one request."""
        if reply.is_refusal:
            self.put_off(number, name, reply)
        elif reply.status == 200 and PROGRAMS[name].true(json.loads(reply.body), token):
            self.answers[name] += 1
        else:
            self.wrong.append(f"{name}: {reply.status} {reply.body[:600]!r}")


def draw(count: int, seed: int) -> deque[tuple[int, str]]:
    """Return so many kinds of requests, each kind at least once."""
    weights = {name: program.weight for name, program in PROGRAMS.items()} | HANG_UPS
    weights |= {name: weight for name, (_, weight) in CHAOS_CLIENTS.items()}
    drawn = random.Random(seed).choices([*weights], [*weights.values()], k=max(count - len(weights), 0))
    return deque(enumerate([*weights, *drawn]))


def request(body: bytes) -> bytes:
    head = f"POST /v1/exec HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def do(line: Line, tally: Tally, number: int, name: str) -> None:
    """Be a client of streams or sessions."""
    try:
        await CHAOS_CLIENTS[name][0](line, f"t{number:06}")
    except Refused as refused:
        tally.put_off(number, name, refused.reply)
    except Untrue as untrue:
        tally.wrong.append(f"{name} {number}: {untrue}")
    else:
        tally.answers[name] += 1


async def hang_up(address: tuple[str, int], name: str) -> None:
    """Send a request, whole or a part of it, and be gone."""
    _, writer = await asyncio.open_connection(*address)
    whole = request(SLEEP_LONG)
    writer.write(whole if name == "hang up at once" else whole[:-9])
    await writer.drain()
    writer.close()
    await writer.wait_closed()


async def client(address: tuple[str, int], tally: Tally) -> None:
    """Send requests on one connection until none is left to send."""
    line = await Line.open(address)
    while tally.todo:
        number, name = tally.take()
        if name in CHAOS_CLIENTS:
            await do(line, tally, number, name)
            continue
        if name in HANG_UPS:
            await hang_up(address, name)
            tally.answers[name] += 1
            continue
        program, token = PROGRAMS[name], f"t{number:06}"
        body = {"code": program.code, "language": program.language, "limits": program.limits, **program.more}
        line.send("POST", "/v1/exec", json.dumps(body).replace("TOKEN", token).encode())
        tally.judge(number, name, token, await line.receive())
    await line.close()


async def storm(address: tuple[str, int], instance: Instance, todo: deque[tuple[int, str]]) -> Tally:
    """Run every request to its answer while templates die."""
    tally = Tally(todo, instance)
    async with asyncio.TaskGroup() as group:
        for _ in range(CLIENTS):
            group.create_task(client(address, tally))
    return tally


class Instance:
    """The native side of a running service, found from its process."""

    def __init__(self, service: Service) -> None:
        self.server = service.process.pid
        (self.janitor,) = (each for each in children(self.server) if b"serve_workshop" not in command_line(each))
        (self.warden,) = children(self.janitor)
        words = command_line(self.janitor).decode().split("\0")
        self.directories = [Path(word.partition("=")[2]) for word in words if "=/" in word]

    def processes(self) -> set[int]:
        """Return every process of the instance: they are in its first hierarchy, as in all others."""
        return set(processes_below(self.directories[0]))

    def programs(self) -> int:
        """Return how many cells of programs are alive, parked ones included."""
        return sum(1 for group in self.directories[0].glob("s*/cgroup.procs") if group.read_text())

    def zygotes(self) -> list[int]:
        """Return the Python zygotes; a child of one looks the same until it is somebody's sandbox, but is in a cell."""
        kept = (self.directories[0] / "keep/cgroup.procs").read_text().split()
        return [int(pid) for pid in kept if b"/proc/self/fd/6" in command_line(int(pid)) and depth(int(pid)) == 2]

    def kill_zygotes(self) -> bool:
        """Kill the Python zygotes that are alive now."""
        pids = self.zygotes()
        for pid in pids:
            with suppress(ProcessLookupError):  # the service retired it just now
                os.kill(pid, signal.SIGKILL)
        return bool(pids)

    def descriptors(self) -> int:
        """Return the server's open descriptors but those of cgroups, which a slot keeps for its next tenant."""
        return sum(1 for path in opened_by(self.server) if not path.startswith("/sys/fs/cgroup"))

    def resident_kb(self) -> int:
        """Return the server's resident memory."""
        lines = Path(f"/proc/{self.server}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmRSS")).split()[1])


def children(pid: int) -> list[int]:
    """Return the pids of a process' children."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def depth(pid: int) -> int:
    """Return how many pid namespaces a process is in; 0 when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return len(next(line for line in lines if line.startswith("NSpid:")).split()) - 1


def is_settled(service: Service, instance: Instance) -> bool:
    """Tell whether nothing runs and the pools are full again."""
    with service.client as http:
        templates = http.get("/v1/health").json()["templates"]
    full = all(templates[key]["ready"] and templates[key]["parked"] == count for key, count in PARKED.items())
    return full and instance.programs() == sum(PARKED.values())


@pytest.mark.usefixtures("as_root")
def test_executions_in_chaos_get_one_true_answer_each_and_leave_nothing(
    tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    executions = int(pytestconfig.getoption("--chaos-executions"))
    mounted = mounts()
    with (
        running_service(tmp_path, config=SETTINGS) as service,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        parts = urlsplit(service.url)
        address = (str(parts.hostname), int(parts.port or 0))
        instance = Instance(service)

        # The first tenth brings every buffer and every slot to its size.
        for count, seed in ((executions // 10, 1), (executions - executions // 10, 2)):
            before = instance.descriptors(), instance.resident_kb()
            todo = draw(count, seed)
            asked = Counter(name for _, name in todo)
            tally = runner.run(storm(address, instance, todo))
            assert tally.wrong == []
            assert tally.answers == asked
            assert tally.killed
            assert settles(lambda: is_settled(service, instance), STUCK_S)
        descriptors, resident_kb = before
        assert settles(lambda: instance.descriptors() <= descriptors, STUCK_S)  # a connection was closed just now
        assert instance.resident_kb() < resident_kb * 1.25
        seen = instance.processes()
        assert service.stop() == 0
        assert b"Traceback" not in service.log.read_bytes()
    assert [pid for pid in (instance.janitor, *seen) if is_alive(pid)] == []
    assert [directory for directory in instance.directories if directory.exists()] == []
    assert mounts() == mounted


@pytest.mark.usefixtures("as_root")
def test_a_storm_that_would_open_too_many_files_is_refused_for_a_while_and_loses_nothing(tmp_path: Path) -> None:
    few = ["prlimit", f"--nofile={FEW_FILES}:{FEW_FILES}"]
    with (
        running_service(tmp_path, config=SETTINGS, prefix=few) as service,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        parts = urlsplit(service.url)
        todo = draw(1000, 3)
        asked = Counter(name for _, name in todo)
        address = (str(parts.hostname), int(parts.port or 0))
        tally = runner.run(storm(address, Instance(service), todo))
        assert (tally.wrong, tally.answers) == ([], asked)
        assert tally.refused
        told = service.log.read_text()
    assert f"{FEW_FILES} open files allow 10 sandboxes" in told
    assert "Traceback" not in told
