"""An engine that runs nothing: it answers by rule or by a script, and remembers what it was asked.

A rule gives the result of a program. A script plays the program: it writes, reads what it is fed, takes signals.
Sessions, files, terminals and tasks are those of `tests.support.stub_sessions`, kept in memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

from sandfork.access import Access, AccessSettings, parse_keys
from sandfork.dialects import load_dialects
from sandfork.dialects.base import Dialect, LanguageState
from sandfork.engine.output import Fold
from sandfork.http.app import App, build_app
from sandfork.http.endpoints import HttpSettings
from sandfork.http.log import ExecutionLog
from sandfork.http.ports import OnStart
from sandfork.metrics import Metrics
from sandfork.model import (
    Caller,
    Display,
    ExecRequest,
    ExecResult,
    Limits,
    Outcome,
    Snippet,
    Stream,
    TemplateHealth,
    Timings,
    Usage,
)
from sandfork.tiers.base import OutputSink
from tests.support.clock import virtual_loop
from tests.support.kept_images import MemoryImages
from tests.support.stub_sessions import StubSessions, StubTasks

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
    """Return the usual result with some of its fields changed; its counts of output fit unless they are among these."""
    result = replace(RESULT, **changes)
    return replace(result, written_bytes=changes.get("written_bytes", (len(result.stdout), len(result.stderr))))


class _Kept(Fold):
    """Keeps output and displays, for a plain reply."""

    def __init__(self) -> None:
        super().__init__()
        self.displays: list[Display] = []

    def display(self, shown: Display) -> None:
        self.displays.append(shown)


class StubRun:
    """A program as a script plays it, and the handle on it for whoever follows it.

    `paused` tells that the sink refused more output; `fed` is all that was read; `signals` are those it got.
    """

    def __init__(self, request: ExecRequest, sink: OutputSink) -> None:
        self.request = request
        self.exec_id = RESULT.exec_id
        self.fed = bytearray()
        self.signals: list[int] = []
        self._sink = sink
        self._room = asyncio.Event()
        self._room.set()
        self._input: asyncio.Queue[bytes] = asyncio.Queue(maxsize=1)
        self._signalled = asyncio.Event()

    @property
    def paused(self) -> bool:
        return not self._room.is_set()

    async def write(self, data: bytes, stream: Stream = Stream.STDOUT) -> None:
        """Write when there is room, as a program does whose pipe is read."""
        await self._room.wait()
        if not self._sink.output(stream, data):
            self._room.clear()

    def show(self, kind: str, **data: str) -> None:
        self._sink.display(Display(kind, {name.replace("_", "/"): text for name, text in data.items()}))

    async def read(self) -> bytes:
        """Return what was fed next; no bytes at the end."""
        data = await self._input.get()
        self.fed += data
        return data

    async def signalled(self) -> int:
        """Wait for a signal."""
        await self._signalled.wait()
        self._signalled.clear()
        return self.signals[-1]

    def resume(self) -> None:
        self._room.set()

    async def feed(self, data: bytes) -> None:
        if self.request.keep_stdin:
            await self._input.put(data)

    def signal(self, number: int) -> None:
        self.signals.append(number)
        self._signalled.set()


Script = Callable[[StubRun], Awaitable[ExecResult]]


class StubEngine:
    """The engine's part that the HTTP side sees. `now` gives Unix time to sessions, terminals and tasks."""

    def __init__(
        self,
        rule: Rule = lambda request: RESULT,
        templates: Sequence[TemplateHealth] = READY,
        *,
        script: Script | None = None,
        now: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.rule = rule
        self.script = script
        self.templates = templates
        self.requests: list[ExecRequest] = []
        self.callers: list[Caller] = []
        self.runs: list[StubRun] = []
        self.running = 0
        self.most_running = 0
        self.cancelled = 0
        self.sessions = StubSessions(now)
        self.tasks = StubTasks(self.execute, now)
        self.kept = MemoryImages()
        self.images = self.kept.desk(self.execute)

    async def execute(
        self, request: ExecRequest, caller: Caller, sink: OutputSink | None = None, on_start: OnStart | None = None
    ) -> ExecResult:
        self.requests.append(request)
        self.callers.append(caller)
        async with self.sessions.used(request, caller) as session:
            self.running += 1
            self.most_running = max(self.most_running, self.running)
            try:
                return await self._run(request, sink, on_start, session)
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
            finally:
                self.running -= 1

    async def _run(
        self, request: ExecRequest, sink: OutputSink | None, on_start: OnStart | None, session: Any
    ) -> ExecResult:
        kept = _Kept()
        run = StubRun(request, sink or kept)
        self.runs.append(run)
        if session is not None:
            session.run = run
        if on_start is not None:
            on_start(run)
        if self.script is not None:
            result = await self.script(run)
        else:
            answer = self.rule(request)
            if isinstance(answer, BaseException):
                raise answer
            result = answer if isinstance(answer, ExecResult) else await answer
            if sink is not None:
                await self._tell(result, run, sink)
        if sink is not None:
            return replace(result, stdout=b"", stderr=b"", displays=())
        if self.script is not None:
            stdout, stderr = kept.joined()
            return replace(result, stdout=stdout, stderr=stderr, displays=tuple(kept.displays))
        return result

    async def _tell(self, result: ExecResult, run: StubRun, sink: OutputSink) -> None:
        """Let the sink have what a rule's result says the program wrote and showed."""
        for stream, data in ((Stream.STDOUT, result.stdout), (Stream.STDERR, result.stderr)):
            if data:
                await run.write(data, stream)
        for shown in result.displays:
            sink.display(shown)

    def health(self) -> Sequence[TemplateHealth]:
        return self.templates

    async def close(self) -> None:
        """End every task and terminal."""
        await self.tasks.close()
        self.sessions.close()
        await self.images.close()


def stub_app(
    engine: StubEngine | None = None,
    *,
    keys: bytes = b"",
    access: AccessSettings | None = None,
    clock: Callable[[], float] = lambda: 0.0,
    metrics: Metrics | None = None,
    log: ExecutionLog | None = None,
    now: Callable[[], float] = lambda: 0.0,
    dialects: Sequence[Dialect] = (),
    languages: Sequence[LanguageState] = (),
    **settings: Any,
) -> App:
    """Return the application over a stub, with the ring of `keys` if there are any, and further `dialects`."""
    ring = parse_keys(keys) if keys else ()
    return build_app(
        HttpSettings(version="1.2.3", isolation="process", languages=lambda: tuple(languages), **settings),
        engine or StubEngine(),
        Access(access or AccessSettings(), ring, clock=clock),
        metrics or Metrics(),
        [*load_dialects(), *dialects],
        log,
        now,
    )
