"""Streams and sessions: how soon the first output arrives, what making a session costs, and what idle ones cost.

The yardstick of latencies is a plain execution of the same service, taking turns. What an idle session costs in memory
is told as for parked sandboxes (see `census`); in processor time, as all of the service's processes use while nobody
asks for anything.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass

from sandfork.bench import census
from sandfork.bench.contenders import PRINT
from sandfork.bench.probe import Execution, Turns, take_turns
from sandfork.bench.report import Row
from sandfork.bench.sections import GAP_S, Sizes, warm
from sandfork.bench.service import ServiceFailed, StartedService
from sandfork.bench.spawn import WrongAnswer
from sandfork.bench.wire import RECEIVE_BYTES, Address, Client, ConnectionLost, dial, request_bytes

SLOW = "import time\nprint('first', flush=True)\ntime.sleep(0.05)\nprint('second')"
IDLE_S = 5.0
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
MB = 1e6


class FirstOutput:
    """POST /v1/exec with `stream` of a program that writes and goes on: the time to what it wrote."""

    def __init__(self, address: Address) -> None:
        self._sock = dial(address)
        self._request = request_bytes("POST", "/v1/exec", json.dumps({"code": SLOW, "stream": True}).encode())

    def run(self) -> int:
        """Execute once; return the nanoseconds to the first output. *Raises* ConnectionLost, WrongAnswer."""
        started = time.perf_counter_ns()
        self._sock.sendall(self._request)
        received, first_ns = b"", 0
        while not received.endswith(b"0\r\n\r\n"):  # the end of a chunked answer
            chunk = self._sock.recv(RECEIVE_BYTES)
            if not chunk:
                raise ConnectionLost("the service closed a stream")
            received += chunk
            if not first_ns and b"first" in received:
                first_ns = time.perf_counter_ns() - started
                if b"second" in received:
                    raise WrongAnswer("a stream told of its first output only when the program was over")
        return first_ns


@dataclass(slots=True)
class Keeper:
    """Makes sessions over a kept connection, and remembers them."""

    client: Client
    made: list[str]

    def ask(self, method: str, path: str, body: object = None) -> tuple[dict[str, object], int]:
        """Return an answer and how long it took. *Raises* ServiceFailed."""
        answer, elapsed = self.client.exchange(
            request_bytes(method, path, json.dumps(body).encode() if body is not None else b"")
        )
        if answer.status not in (200, 201):
            raise ServiceFailed(f"{method} {path} answered {answer.status}: {answer.body[:200]!r}")
        return json.loads(answer.body), elapsed

    def make(self) -> int:
        """Make a session; return the nanoseconds it took."""
        document, elapsed = self.ask("POST", "/v1/sessions", {"language": "python"})
        self.made.append(str(document["id"]))
        return elapsed

    def run(self, code: str = "x = 1") -> int:
        """Run code in the session made last; return the nanoseconds it took."""
        _, elapsed = self.ask("POST", f"/v1/sessions/{self.made[-1]}/exec", {"code": code})
        return elapsed

    def end_all(self) -> None:
        """Delete the sessions."""
        for name in self.made:
            self.ask("DELETE", f"/v1/sessions/{name}")
        self.made.clear()


def latencies(address: Address, sizes: Sizes) -> list[Row]:
    """Measure a stream's first output, making a session and running in one, in turns with a plain execution."""
    count = min(sizes.pairs, 150)
    with Execution(address, PRINT, "2\n") as execution, Client(address) as client:
        warm(execution)
        keeper, stream = Keeper(client, []), FirstOutput(address)
        keeper.make()
        keeper.run()
        plain, first = Turns(count, execution.run), Turns(count, stream.run)
        inside, making = Turns(count, keeper.run), Turns(count, keeper.make)
        take_turns([plain, first, inside], GAP_S, sizes.turns_s)
        again = Turns(count, execution.run)
        take_turns([again, making], GAP_S, sizes.turns_s)
        keeper.end_all()
    yardstick, yardstick_again = plain.summary_ms().p50, again.summary_ms().p50
    rows = (
        ("stream_first", "first output of a stream", first, yardstick),
        ("session_exec", "x = 1 in a session", inside, yardstick),
        ("session_make", "making a session", making, yardstick_again),
    )
    told = []
    for key, what, turns, base in rows:
        summary = turns.summary_ms()
        told.append(Row(key, what, summary.p50, "ms", summary.p50 / base, "a plain one", summary))
    return told


def idle(service: StartedService, sessions: int = 200) -> list[Row]:
    """Measure what so many idle sessions cost, each with an interpreter that has run something."""
    service.wait_settled()
    kernel_before, pss_before, count_before = census.kernel_memory(), *_weigh(service)
    with Client(service.address) as client:
        keeper = Keeper(client, [])
        for _ in range(sessions):
            keeper.make()
            keeper.run()
        service.wait_settled()
        kernel = census.kernel_memory().total_since(kernel_before)
        pss, count = _weigh(service)
        if count - count_before < sessions:
            raise ServiceFailed(
                f"{sessions} sessions were made, but {count - count_before} sandboxes are more than before"
            )
        used_s = _cpu_used(service)
        time.sleep(IDLE_S)
        cores = (_cpu_used(service) - used_s) / IDLE_S
        keeper.end_all()
    each = (pss - pss_before + kernel) / sessions / MB
    return [
        Row("sessions_memory", f"{sessions} sessions idle: memory each", each, "MB", each),
        Row("sessions_cpu", f"{sessions} sessions idle: cores used", cores, "", cores),
    ]


def _weigh(service: StartedService) -> tuple[int, int]:
    """Return the PSS of all sandboxes together, and how many there are."""
    inside, count = census.parked_sandboxes(service.tree())
    return sum(census.pss_bytes(process.pid) for process in inside), count


def _cpu_used(service: StartedService) -> float:
    """Return the processor seconds that the service's processes, sandboxes included, have used."""
    ticks = 0
    for process in service.tree():
        try:
            words = (census.PROC / str(process.pid) / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        ticks += int(words[11]) + int(words[12])
    return ticks / TICKS_PER_S
