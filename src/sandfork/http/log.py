"""One line of JSON for each execution and each refusal: ids, sizes, outcome, times; never code, output, values or keys.

`current` is the log context: the exchange being answered, in whose task everything on behalf of it runs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextvars import ContextVar

import msgspec

from sandfork.dialects.fields import milliseconds
from sandfork.errors import SandforkError, TierError
from sandfork.http.exchange import Exchange
from sandfork.model import Caller, ExecPlan, ExecResult

current: ContextVar[Exchange | None] = ContextVar("exchange", default=None)


def note_request(record: logging.LogRecord) -> bool:
    """Give a log record the ids of the request it was written for; a filter for handlers of `logging`."""
    exchange = current.get()
    if exchange is not None:
        record.request_id, record.key_id = exchange.request_id, exchange.caller.key_id
    return True


class LogLine(msgspec.Struct, omit_defaults=True, kw_only=True):
    """What a line may hold. Times are milliseconds but for `ts`, Unix time in seconds.

    `reason` is what the machinery of sandboxes says of its own failure; callers are not told.
    """

    ts: float
    event: str
    request_id: str = ""
    exec_id: str = ""
    dialect: str = ""
    path: str = ""
    key_id: str = ""
    address: str = ""
    language: str = ""
    template: str = ""
    isolation: str = ""
    code_bytes: int = 0
    stdin_bytes: int = 0
    files: int = 0
    outcome: str = ""
    exit_code: int | None = None
    signal: int | None = None
    stdout_bytes: int = 0
    stderr_bytes: int = 0
    truncated: bool = False
    memory_peak_bytes: int = 0
    cpu_ms: float = 0.0
    queue_ms: float = 0.0
    fork_ms: float = 0.0
    exec_ms: float = 0.0
    total_ms: float = 0.0
    error: str = ""
    reason: str = ""
    status: int = 0


class ExecutionLog:
    """Writes the lines. `write` takes one whole line and must not block; `clock` gives Unix time in seconds."""

    def __init__(self, write: Callable[[bytes], object], clock: Callable[[], float]) -> None:
        self._write = write
        self._clock = clock
        self._encode = msgspec.json.Encoder().encode

    def observe(self, caller: Caller, plan: ExecPlan | None, outcome: ExecResult | BaseException) -> None:
        """Log one execution that is over: its result, or why there is none."""
        line = LogLine(ts=round(self._clock(), 3), event="execution", key_id=caller.key_id, address=caller.address)
        exchange = current.get()
        if exchange is not None:
            line.request_id, line.dialect, line.path = exchange.request_id, exchange.dialect, exchange.path
        if plan is not None:
            _note_plan(line, plan)
        if isinstance(outcome, ExecResult):
            _note_result(line, outcome)
        else:
            line.error = outcome.code if isinstance(outcome, SandforkError) else type(outcome).__name__
            line.reason = _reason(outcome)
        self._put(line)

    def refused(self, exchange: Exchange, error: SandforkError, status: int) -> None:
        """Log a request that never reached the engine."""
        self._put(
            LogLine(
                ts=round(self._clock(), 3),
                event="refused",
                request_id=exchange.request_id,
                dialect=exchange.dialect,
                path=exchange.path[:200],
                key_id=exchange.caller.key_id,
                address=exchange.caller.address or exchange.peer,
                error=error.code,
                reason=_reason(error),
                status=status,
            )
        )

    def _put(self, line: LogLine) -> None:
        self._write(self._encode(line) + b"\n")


def _reason(error: BaseException) -> str:
    return error.message[:500] if isinstance(error, TierError) else ""


def _note_plan(line: LogLine, plan: ExecPlan) -> None:
    step = plan.compilation.step if plan.compilation else plan.step
    line.exec_id, line.language, line.template = plan.exec_id, plan.language, plan.template_key
    line.isolation = plan.isolation
    line.code_bytes, line.stdin_bytes, line.files = len(step.code or b""), len(plan.step.stdin), len(plan.step.files)


def _note_result(line: LogLine, result: ExecResult) -> None:
    line.outcome, line.exit_code, line.signal = result.outcome.value, result.exit_code, result.signal
    (line.stdout_bytes, line.stderr_bytes), line.truncated = result.written_bytes, result.truncated
    usage, timings = result.usage, result.timings
    line.memory_peak_bytes = usage.memory_peak_bytes
    line.cpu_ms = milliseconds(usage.cpu_user_s + usage.cpu_system_s)
    line.queue_ms, line.fork_ms = milliseconds(timings.queue_s), milliseconds(timings.fork_s)
    line.exec_ms, line.total_ms = milliseconds(timings.exec_s), milliseconds(timings.total_s)
