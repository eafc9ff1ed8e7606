"""An engine that runs nothing: it answers by rule, and remembers what it was asked."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

from sandfork.access import Access, AccessSettings, parse_keys
from sandfork.dialects import load_dialects
from sandfork.http.app import App, build_app
from sandfork.http.endpoints import HttpSettings
from sandfork.http.log import ExecutionLog
from sandfork.metrics import Metrics
from sandfork.model import (
    Caller,
    ExecRequest,
    ExecResult,
    Limits,
    Outcome,
    Snippet,
    TemplateHealth,
    Timings,
    Usage,
)
from tests.support.clock import virtual_loop

RESULT = ExecResult(
    exec_id="019cf684-1fd5-73c0-9299-52253f9aa79c",
    outcome=Outcome.EXITED,
    exit_code=0,
    signal=None,
    stdout=b"2\n",
    stderr=b"",
    truncated=False,
    usage=Usage(cpu_user_s=0.002, cpu_system_s=0.001, wall_s=0.0072, memory_peak_bytes=9 << 20, processes=1),
    limits=Limits(),
    timings=Timings(queue_s=0.00005, fork_s=0.00075, exec_s=0.0072, total_s=0.008),
    isolation="process",
)
READY = (
    TemplateHealth("python", True, 256 << 20, 8, 1),
    TemplateHealth("node", True, 256 << 20, 2, 1),
)

Rule = Callable[[ExecRequest], ExecResult | BaseException | Awaitable[ExecResult]]


def by_code(answers: dict[str, ExecResult | BaseException]) -> Rule:
    """Answer each program by its code, and any other as `print(1 + 1)` would be."""

    def rule(request: ExecRequest) -> ExecResult | BaseException:
        code = request.program.code if isinstance(request.program, Snippet) else ""
        return answers.get(code, RESULT)

    return rule


async def elapse(delay_s: float) -> None:
    """Let virtual time pass, with everything that happens in it."""
    reached = asyncio.get_running_loop().create_future()
    virtual_loop().call_later(delay_s, reached.set_result, None)
    await reached


def ended(**changes: Any) -> ExecResult:
    """Return the usual result with some of its fields changed."""
    return replace(RESULT, **changes)


class StubEngine:
    """The engine's part that the HTTP side sees."""

    def __init__(self, rule: Rule = lambda request: RESULT, templates: Sequence[TemplateHealth] = READY) -> None:
        self.rule = rule
        self.templates = templates
        self.requests: list[ExecRequest] = []
        self.callers: list[Caller] = []
        self.running = 0
        self.most_running = 0
        self.cancelled = 0

    async def execute(self, request: ExecRequest, caller: Caller) -> ExecResult:
        self.requests.append(request)
        self.callers.append(caller)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            answer = self.rule(request)
            if isinstance(answer, BaseException):
                raise answer
            return answer if isinstance(answer, ExecResult) else await answer
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1

    def health(self) -> Sequence[TemplateHealth]:
        return self.templates


def stub_app(
    engine: StubEngine | None = None,
    *,
    keys: bytes = b"",
    access: AccessSettings | None = None,
    clock: Callable[[], float] = lambda: 0.0,
    metrics: Metrics | None = None,
    log: ExecutionLog | None = None,
    now: Callable[[], float] = lambda: 0.0,
    **settings: Any,
) -> App:
    """Return the application over a stub, with the ring of `keys` if there are any."""
    ring = parse_keys(keys) if keys else ()
    return build_app(
        HttpSettings(version="1.2.3", isolation="process", **settings),
        engine or StubEngine(),
        Access(access or AccessSettings(), ring, clock=clock),
        metrics or Metrics(),
        load_dialects(),
        log,
        now,
    )
