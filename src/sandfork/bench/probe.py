"""Things that take turns: an execution over HTTP whose answer is checked, and a program started bare."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sandfork.bench.spawn import Command, run_once
from sandfork.bench.stats import Summary, round_robin, summarise
from sandfork.bench.wire import Address, Client, exec_request, no_collection

MS_PER_NS = 1e-6


@dataclass(slots=True)
class Turns:
    """One contender: how often it plays, what a play is (it returns nanoseconds), and what it took so far."""

    count: int
    play: Callable[[], int]
    taken_ns: list[int] = field(default_factory=list)

    def summary_ms(self) -> Summary:
        """Return the statistics of all plays, in milliseconds."""
        return summarise(nanoseconds * MS_PER_NS for nanoseconds in self.taken_ns)


def bare(command: Command, count: int) -> Turns:
    """Return a contender that starts a program."""
    return Turns(count, lambda: run_once(command))


def take_turns(contenders: Sequence[Turns], gap_s: float, limit_s: float = 300.0) -> None:
    """Let all contenders play, round robin, each play `gap_s` after the end of the one before.

    No play begins after `limit_s`, once everyone has played.
    """
    until = time.monotonic() + limit_s
    with no_collection():
        for index in round_robin([contender.count for contender in contenders]):
            if time.monotonic() > until and all(contender.taken_ns for contender in contenders):
                return
            time.sleep(gap_s)
            contenders[index].taken_ns.append(contenders[index].play())


class Execution:
    """POST /v1/exec of one program over a kept connection; every answer is parsed and checked after its time is taken.

    `expect` is the exact output, or None where it is random: then no two outputs may be equal.
    """

    def __init__(self, address: Address, code: str, expect: str | None, language: str = "python") -> None:
        self._client = Client(address)
        self._request = exec_request(code, language)
        self._expect = expect
        self._seen: set[str] = set()
        self.wrong = 0
        self.first_wrong = ""
        self.fork_ms: list[float] = []
        self.exec_ms: list[float] = []
        self.total_ms: list[float] = []

    def run(self) -> int:
        """Execute once; return the nanoseconds from the request's first byte to the answer's last."""
        self._client.refresh()
        answer, elapsed = self._client.exchange(self._request)
        document = json.loads(answer.body) if answer.status == 200 else {}
        output = document.get("stdout")
        if not self._is_right(output, document.get("exit_code")):
            self.wrong += 1
            self.first_wrong = self.first_wrong or f"{answer.status} {answer.body[:300]!r}"
            return elapsed
        self.fork_ms.append(document["fork_time_ms"])
        self.exec_ms.append(document["exec_time_ms"])
        self.total_ms.append(document["total_time_ms"])
        return elapsed

    def _is_right(self, output: object, exit_code: object) -> bool:
        if exit_code != 0 or not isinstance(output, str) or not output:
            return False
        if self._expect is not None:
            return output == self._expect
        fresh = output not in self._seen
        self._seen.add(output)
        return fresh

    def forget(self) -> None:
        """Drop the service's own timings taken so far, keeping the count of wrong answers."""
        for timings in (self.fork_ms, self.exec_ms, self.total_ms):
            timings.clear()

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def __enter__(self) -> Execution:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
