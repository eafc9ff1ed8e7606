"""Faber's API: lists of commands, each in a sandbox of its own.

What its document leaves open:

- Tasks run in parallel and each to its end, whatever becomes of the others; results are in the order of the request.
  `sequential` tasks run one after another in one sandbox, and after the first that is not a Success the rest are
  `NotExecuted`. Each has its own times and output limit; of the other limits the largest named holds for all together.
- A request that is malformed is refused as a whole. A task that cannot be prepared (a path that leaves the work
  directory, a name no environment takes) is `NotExecuted`, and so is one that this server could not run while it ran
  others; their `error` tells why.
- Times above the server's maximum are lowered to it; any other limit above a ceiling is refused with 403. This API's
  own defaults are lowered to the ceilings, as nobody asked for them.
- `exit_code` is 128 + n when signal n ended the task, also when that was for a limit; it is null when nothing ran.
- `file_descriptor_limit_exceeded` rests on the program's word, its last ones on stderr, as no kernel counts this: a
  program that fails and says "Too many open files". Every other figure and flag is the kernel's.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from dataclasses import replace

import msgspec

from sandfork.access_quotas import Quota
from sandfork.dialects.base import (
    Answer,
    Ask,
    BodyMark,
    Bounds,
    Dialect,
    DocumentRoute,
    Example,
    ExecRoute,
    HealthRoute,
    InTurn,
    PageRoute,
    RawRequest,
    Reply,
    Route,
    ServiceHealth,
)
from sandfork.dialects.faber_wire import (
    EXEC_EXAMPLES,
    ErrorReply,
    ExecBody,
    ExecReply,
    HealthReply,
    LimitsExceeded,
    ResourceLimits,
    ResourceUsage,
    Result,
    Status,
    Task,
)
from sandfork.dialects.fields import decode_body, instant, shown, text
from sandfork.dialects.refusals import NotRun, error_headers, public_message, status_of
from sandfork.errors import (
    CallerError,
    CapacityError,
    FileNotInSandbox,
    Forbidden,
    GuestLost,
    InvalidRequest,
    SandforkError,
    TierError,
    Unauthenticated,
)
from sandfork.model import (
    Command,
    ExecRequest,
    ExecResult,
    InputFile,
    Limits,
    LimitsOverride,
    Outcome,
    SessionSpec,
    Usage,
)

NANO = 1_000_000_000
DEFAULTS = Limits(wall_s=60.0, cpu_s=30.0, memory_bytes=512 << 20, pids=10, open_files=100, output_bytes=1 << 20)
STANDARD_STREAMS = 3
"""What a program has open when it begins: stdin, stdout, stderr and nothing else."""
NOT_STARTED = {126: "command cannot be executed", 127: "command not found"}
"""What an exit code tells, as shells have it, of a command that said nothing itself."""

_TOO_MANY_FILES = re.compile(rb"too many open files(?! in system)", re.IGNORECASE)
_LAST_WORDS_BYTES = 4096

_body = msgspec.json.Decoder(ExecBody)
_encode = msgspec.json.Encoder().encode


def parse_exec(raw: RawRequest, bounds: Bounds) -> Ask:
    """Read the tasks; the echo holds, for each, its command or why it cannot be prepared.

    *Raises* InvalidRequest, Forbidden.
    """
    body = decode_body(_body, raw.body)
    if len(body.tasks) > bounds.max_batch:
        raise InvalidRequest("tasks", f"holds {len(body.tasks)} tasks, more than {bounds.max_batch}")
    requests: list[ExecRequest] = []
    echo: list[str | CallerError] = []
    for index, task in enumerate(body.tasks):
        if not task.command.strip():
            where = f" (tasks[{index}])" if len(body.tasks) > 1 else ""
            raise InvalidRequest("", f"Invalid command: command cannot be empty{where}")
        limits = _limits(task.resource_limits or ResourceLimits(), bounds, f"tasks[{index}].resource_limits")
        unfit: CallerError | None = _unfit_path(task)
        if body.sequential and len(requests) < index:
            unfit = NotRun("an earlier task could not be prepared")
        echo.append(unfit or task.command)
        if unfit is None:
            requests.append(_request(task, limits))
    in_turn = InTurn(_shared_sandbox(requests), _succeeded) if body.sequential else None
    if in_turn is not None:
        requests = [replace(request, limits=_own(request.limits)) for request in requests]
    return Ask(tuple(requests), tuple(echo), cost=len(body.tasks), in_turn=in_turn)


def _shared_sandbox(requests: Sequence[ExecRequest]) -> SessionSpec:
    """Return the sandbox of tasks that share one: of what they have together it has the most any of them asks for."""

    def most(name: str) -> int | None:
        return max((getattr(request.limits, name) for request in requests), default=None)

    limits = LimitsOverride(memory_bytes=most("memory_bytes"), pids=most("pids"), open_files=most("open_files"))
    return SessionSpec(limits=limits)


def _own(limits: LimitsOverride) -> LimitsOverride:
    """Return those limits that each execution in a shared sandbox has for itself."""
    return LimitsOverride(wall_s=limits.wall_s, cpu_s=limits.cpu_s, output_bytes=limits.output_bytes)


def _succeeded(answer: Answer) -> bool:
    return isinstance(answer, ExecResult) and _verdict(answer, "")[0] is Status.SUCCESS


def _unfit_path(task: Task) -> InvalidRequest | None:
    """Return what is wrong with a path that our engine would take and this API does not."""
    absolute = next((path for path in task.files or () if path.startswith("/")), None)
    if absolute is None:
        return None
    return InvalidRequest("files", f"{shown(absolute)}: a path must be relative to the work directory")


def _request(task: Task, limits: LimitsOverride) -> ExecRequest:
    return ExecRequest(
        program=Command((task.command, *(task.args or ()))),
        files=tuple(InputFile(path, content.encode()) for path, content in (task.files or {}).items()),
        env=tuple((task.env or {}).items()),
        limits=limits,
    )


def _limits(asked: ResourceLimits, bounds: Bounds, within: str) -> LimitsOverride:
    ceilings = bounds.ceilings
    return LimitsOverride(
        wall_s=_seconds(asked.wall_time_limit, DEFAULTS.wall_s, bounds.max_wall_s),
        cpu_s=_seconds(asked.cpu_time_limit, DEFAULTS.cpu_s, ceilings.cpu_s),
        memory_bytes=_amount(
            asked.memory_limit, DEFAULTS.memory_bytes, ceilings.memory_bytes, f"{within}.memory_limit"
        ),
        pids=_amount(asked.max_processes, DEFAULTS.pids, ceilings.pids, f"{within}.max_processes"),
        open_files=_amount(
            asked.max_file_descriptors, DEFAULTS.open_files, ceilings.open_files, f"{within}.max_file_descriptors"
        ),
        output_bytes=_amount(
            asked.max_output_size, DEFAULTS.output_bytes, ceilings.output_bytes, f"{within}.max_output_size"
        ),
    )


def _seconds(asked_ns: int | None, default_s: float, ceiling_s: float) -> float:
    asked_s = default_s if asked_ns is None else min(asked_ns, 1 << 62) / NANO
    return min(asked_s, ceiling_s)


def _amount(asked: int | None, default: int, ceiling: int, field: str) -> int:
    if asked is None:
        return min(default, ceiling)
    if asked > ceiling:
        raise Forbidden(f"{field}: {asked} is above the ceiling of {ceiling}")
    return asked


def render_exec(ask: Ask, answers: Sequence[Answer], request_id: str) -> Reply:
    """Answer every task, in the order asked."""
    coming = iter(answers)
    results = [
        _not_executed(each) if isinstance(each, CallerError) else _result(each, next(coming)) for each in ask.echo
    ]
    return Reply(_encode(ExecReply(results)))


def _not_executed(error: SandforkError) -> Result:
    # A sandbox that was lost may have run the program: nobody can tell how far.
    status = Status.FAILURE if isinstance(error, GuestLost) else Status.NOT_EXECUTED
    return Result(status, error=public_message(error))


def _result(command: str, answer: Answer) -> Result:
    if isinstance(answer, SandforkError):
        return _not_executed(answer)
    status, exceeded, error = _verdict(answer, command)
    return Result(
        status,
        answer.status,
        text(answer.stdout) or None,
        text(answer.stderr) or None,
        error,
        _usage(answer.usage),
        exceeded,
    )


def _verdict(result: ExecResult, command: str) -> tuple[Status, LimitsExceeded, str | None]:
    """Return the status, which limits were exceeded, and what there is to say of it."""
    limits, none = result.limits, LimitsExceeded()
    match result.outcome:
        case Outcome.TIMED_OUT:
            said = f"wall time limit of {limits.wall_s:g} s exceeded"
            return Status.TIMEOUT, LimitsExceeded(wall_time_limit_exceeded=True), said
        case Outcome.CPU_LIMIT:
            said = f"CPU time limit of {limits.cpu_s:g} s exceeded"
            return Status.CPU_LIMIT_EXCEEDED, LimitsExceeded(cpu_time_limit_exceeded=True), said
        case Outcome.OUT_OF_MEMORY:
            return Status.MEMORY_LIMIT_EXCEEDED, none, f"memory limit of {limits.memory_bytes} bytes exceeded"
        case Outcome.PIDS_LIMIT:
            said = f"limit of {limits.pids} processes exceeded"
            return Status.RESOURCE_LIMIT_EXCEEDED, LimitsExceeded(process_limit_exceeded=True), said
        case Outcome.OUTPUT_LIMIT:
            said = f"output limit of {limits.output_bytes} bytes exceeded"
            return Status.RESOURCE_LIMIT_EXCEEDED, LimitsExceeded(output_limit_exceeded=True), said
        case Outcome.DISK_LIMIT:
            return Status.RESOURCE_LIMIT_EXCEEDED, none, f"disk limit of {limits.disk_bytes} bytes exceeded"
        case Outcome.POLICY_VIOLATION:
            return Status.FAILURE, none, "stopped by the sandbox's policy"
        case _:
            return _own_end(result, command)


def _own_end(result: ExecResult, command: str) -> tuple[Status, LimitsExceeded, str | None]:
    """Return the verdict on a program that no limit stopped."""
    none = LimitsExceeded()
    if result.signal is not None:
        return Status.FAILURE, none, f"killed by signal {_signal_name(result.signal)}"
    if not result.exit_code:
        return Status.SUCCESS, none, None
    if _TOO_MANY_FILES.search(result.stderr[-_LAST_WORDS_BYTES:]):
        said = f"limit of {result.limits.open_files} file descriptors exceeded"
        return Status.RESOURCE_LIMIT_EXCEEDED, LimitsExceeded(file_descriptor_limit_exceeded=True), said
    reason = None if result.stdout or result.stderr else NOT_STARTED.get(result.exit_code)
    return Status.FAILURE, none, f"{reason}: {shown(command)}" if reason else None


def _signal_name(number: int) -> str:
    try:
        return f"{number} ({signal.Signals(number).name})"
    except ValueError:
        return str(number)


def _usage(usage: Usage) -> ResourceUsage:
    user_ns, system_ns = round(usage.cpu_user_s * NANO), round(usage.cpu_system_s * NANO)
    return ResourceUsage(
        user_ns + system_ns,
        round(usage.wall_s * NANO),
        usage.memory_peak_bytes,
        usage.memory_current_bytes,
        usage.processes,
        STANDARD_STREAMS,
        usage.io_read_bytes,
        usage.io_write_bytes,
        system_ns,
        user_ns,
    )


def render_health(health: ServiceHealth) -> Reply:
    """Answer 200 when a template is ready, else 503."""
    status, word = (200, "healthy") if health.ready else (503, "unhealthy")
    return Reply(_encode(HealthReply(word, instant(health.now_s), health.version)), status)


_TITLES = {
    400: "Validation error",
    401: "Authentication required",
    403: "Access denied",
    404: "Not found",
    405: "Method not allowed",
    408: "Request timeout",
    409: "Conflict",
    413: "Request too large",
    415: "Unsupported media type",
    429: "Rate limit exceeded",
    500: "Internal server error",
    501: "Not implemented",
    503: "Service unavailable",
}
_DETAILS = {
    401: "API key is required for this endpoint",
    413: "Request body exceeds maximum size limit",
    429: "Too many requests, please try again later",
    500: "Failed to execute task",
}
"""What this API says whatever the error; elsewhere the error speaks for itself."""


def render_error(error: SandforkError, request_id: str) -> Reply:
    """Answer an error: what kind it is and what is wrong. A wrong key is 403 here, a missing one 401."""
    status = 403 if isinstance(error, Unauthenticated) and not error.missing else status_of(error)
    body = ErrorReply(_TITLES[status], _DETAILS.get(status) or public_message(error))
    return Reply(_encode(body), status, headers=error_headers(error))


_ROUTES: tuple[Route, ...] = (
    ExecRoute(
        path="/execute",
        summary="Execute one or more tasks in isolated sandboxes",
        parse=parse_exec,
        render=render_exec,
        body_type=ExecBody,
        reply_type=ExecReply,
        examples=EXEC_EXAMPLES,
        as_results=(InvalidRequest, FileNotInSandbox, TierError, CapacityError),
        not_all=(TierError, CapacityError),
        at_root=True,
        mark=BodyMark(("tasks",)),
    ),
    HealthRoute(
        path="/health",
        summary="Check if the service is running",
        render=render_health,
        reply_type=HealthReply,
        examples=(
            Example("Healthy", reply=b'{"status": "healthy", "timestamp": "2024-01-01T12:00:00Z", "version": "0.1.0"}'),
        ),
    ),
    DocumentRoute(path="/api-docs/openapi.json", summary="OpenAPI document", at_root=True),
    PageRoute(path="/swagger-ui", summary="Reference to try", document="/api-docs/openapi.json", at_root=True),
)

DIALECT = Dialect(
    name="faber",
    title="Faber",
    prefix="/faber",
    routes=_ROUTES,
    render_error=render_error,
    error_type=ErrorReply,
    description="Run commands, each in a sandbox of its own or one after another in one.",
    quotas=(Quota(100, 60.0, "address"), Quota(1000, 3600.0, "key")),
)
