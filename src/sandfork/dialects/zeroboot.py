"""zeroboot's API, exactly: one run, a batch of runs, health, metrics.

What its document leaves open: a run that times out is 200 with exit code -1 and keeps its output so far; machinery of
ours that fails is 200 with exit code -1 and the reason in `stderr`, as that server does; a timeout above the server's
maximum is lowered to it. In a batch an item we could not run is such a result too, and the others run; a batch with a
malformed item is refused as a whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from sandfork.dialects.base import (
    LANGUAGE,
    Answer,
    Ask,
    Bounds,
    Dialect,
    Example,
    ExecRoute,
    HealthRoute,
    MetricsRoute,
    RawRequest,
    Reply,
    ServiceHealth,
)
from sandfork.dialects.fields import check_code, decode_body, milliseconds, text, timed_out_line, with_last_line
from sandfork.dialects.refusals import error_headers, public_message, status_of
from sandfork.errors import (
    CapacityError,
    ForkFailed,
    GuestLost,
    InvalidRequest,
    SandforkError,
    TemplateFailed,
    TierError,
    TierUnavailable,
)
from sandfork.model import ExecRequest, LimitsOverride, Outcome, Snippet


class ExecBody(msgspec.Struct, frozen=True):
    """Code to run in a sandbox of its own."""

    code: Annotated[str, Meta(description="Code to execute.")]
    language: Annotated[str, Meta(description="`python`, `node` …", extra_json_schema=LANGUAGE)] = "python"
    timeout_seconds: Annotated[int, Meta(ge=1, description="Lowered to the server's maximum.")] = 30


class ExecReply(msgspec.Struct, frozen=True):
    """What came of one run. Times are milliseconds."""

    id: str
    stdout: str
    stderr: str
    exit_code: int
    fork_time_ms: float
    exec_time_ms: float
    total_time_ms: float


class BatchBody(msgspec.Struct, frozen=True):
    """Runs to make in parallel, each in a sandbox of its own."""

    executions: Annotated[list[ExecBody], Meta(description="As many as the server's batch maximum, 100 by default.")]


class BatchReply(msgspec.Struct, frozen=True):
    """The results, in the order of the request."""

    results: list[ExecReply]


class TemplateState(msgspec.Struct, frozen=True):
    """Whether a template can fork, and its real size in MiB."""

    ready: bool
    memory_mb: int


class HealthReply(msgspec.Struct, frozen=True):
    """The state of every template."""

    status: str
    templates: dict[str, TemplateState]


class ErrorReply(msgspec.Struct, frozen=True):
    """Why a request was refused."""

    error: str


_exec_body = msgspec.json.Decoder(ExecBody)
_batch_body = msgspec.json.Decoder(BatchBody)
_encode = msgspec.json.Encoder().encode


def parse_exec(raw: RawRequest, bounds: Bounds) -> Ask:
    """Read one run. *Raises* InvalidRequest."""
    return Ask((_request(decode_body(_exec_body, raw.body), bounds, ""),))


def parse_batch(raw: RawRequest, bounds: Bounds) -> Ask:
    """Read a batch; it may be empty. *Raises* InvalidRequest."""
    items = decode_body(_batch_body, raw.body).executions
    if len(items) > bounds.max_batch:
        raise InvalidRequest("executions", f"holds {len(items)} items, more than {bounds.max_batch}")
    return Ask(tuple(_request(item, bounds, f"executions[{index}].") for index, item in enumerate(items)))


def _request(body: ExecBody, bounds: Bounds, within: str) -> ExecRequest:
    code = check_code(body.code, f"{within}code", bounds.max_code_bytes)
    wall_s = float(min(body.timeout_seconds, bounds.max_wall_s))
    return ExecRequest(program=Snippet(body.language, code), limits=LimitsOverride(wall_s=wall_s))


def render_exec(ask: Ask, answers: Sequence[Answer], request_id: str) -> Reply:
    """Answer one run."""
    return Reply(_encode(_reply(ask.requests[0], answers[0], request_id)))


def render_batch(ask: Ask, answers: Sequence[Answer], request_id: str) -> Reply:
    """Answer a batch, in the order asked."""
    pairs = zip(ask.requests, answers, strict=True)
    return Reply(_encode(BatchReply([_reply(request, answer, request_id) for request, answer in pairs])))


def _reply(request: ExecRequest, answer: Answer, request_id: str) -> ExecReply:
    if isinstance(answer, SandforkError):
        return ExecReply(request_id, "", _failure_text(answer, request), -1, 0.0, 0.0, 0.0)
    timed_out = answer.outcome is Outcome.TIMED_OUT
    timings = answer.timings
    return ExecReply(
        answer.exec_id,
        text(answer.stdout),
        with_last_line(answer.stderr, timed_out_line(answer.limits)) if timed_out else text(answer.stderr),
        -1 if timed_out else answer.status,
        milliseconds(timings.fork_s),
        milliseconds(timings.exec_s),
        milliseconds(timings.total_s),
    )


def _failure_text(error: SandforkError, request: ExecRequest) -> str:
    """Return what this API puts into stderr when the server could not run the program."""
    if isinstance(error, TemplateFailed | TierUnavailable) and isinstance(request.program, Snippet):
        return f"No template for language: {request.program.language}"
    if isinstance(error, ForkFailed):
        return f"Fork failed: {error.step or error.code}"
    if isinstance(error, GuestLost):
        return "Process exited unexpectedly"
    return public_message(error)


def render_health(health: ServiceHealth) -> Reply:
    """Answer 200 when a template is ready, else 503."""
    templates = {t.key: TemplateState(t.ready, round(t.memory_bytes / (1 << 20))) for t in health.templates}
    if health.ready:
        return Reply(_encode(HealthReply("ok", templates)))
    return Reply(_encode(HealthReply("unavailable", templates)), 503)


def render_error(error: SandforkError, request_id: str) -> Reply:
    """Answer an error: its status and one sentence."""
    return Reply(_encode(ErrorReply(public_message(error))), status_of(error), headers=error_headers(error))


_EXEC_EXAMPLES = (
    Example(
        "A sum",
        b'{"code": "print(1 + 1)", "language": "python", "timeout_seconds": 30}',
        b'{"id": "019cf684-1fd5-73c0-9299-52253f9aa79c", "stdout": "2\\n", "stderr": "", "exit_code": 0,'
        b' "fork_time_ms": 0.75, "exec_time_ms": 7.2, "total_time_ms": 8.0}',
    ),
    Example("numpy is preloaded", b'{"code": "import numpy; print(numpy.random.rand(3))", "language": "python"}'),
)
_BATCH_EXAMPLES = (
    Example(
        "Two languages at once",
        b'{"executions": [{"code": "print(1)", "language": "python"}, {"code": "console.log(2)", "language": "node"}]}',
        b'{"results": [{"id": "019cf684-1fd5-73c0-9299-52253f9aa79c", "stdout": "1\\n", "stderr": "",'
        b' "exit_code": 0, "fork_time_ms": 0.72, "exec_time_ms": 6.8, "total_time_ms": 7.5},'
        b' {"id": "019cf684-1fd5-73c0-9299-52253f9aa79d", "stdout": "2\\n", "stderr": "",'
        b' "exit_code": 0, "fork_time_ms": 0.81, "exec_time_ms": 12.1, "total_time_ms": 12.9}]}',
    ),
)
_HEALTH_EXAMPLES = (
    Example(
        "Two templates",
        reply=b'{"status": "ok", "templates": {"python": {"ready": true, "memory_mb": 256},'
        b' "node": {"ready": true, "memory_mb": 256}}}',
    ),
)


def _routes() -> tuple[ExecRoute | HealthRoute | MetricsRoute, ...]:
    run = [
        ExecRoute(
            path=path,
            summary="Execute code in a freshly forked sandbox",
            parse=parse_exec,
            render=render_exec,
            body_type=ExecBody,
            reply_type=ExecReply,
            examples=_EXEC_EXAMPLES,
            as_results=(TierError,),
        )
        for path in ("/v1/exec", "/exec")
    ]
    batch = ExecRoute(
        path="/v1/exec/batch",
        summary="Execute several snippets in parallel, each in a sandbox of its own",
        parse=parse_batch,
        render=render_batch,
        body_type=BatchBody,
        reply_type=BatchReply,
        examples=_BATCH_EXAMPLES,
        as_results=(TierError, CapacityError),
    )
    health = [
        HealthRoute(
            path=path,
            summary="Template status and readiness",
            render=render_health,
            reply_type=HealthReply,
            examples=_HEALTH_EXAMPLES,
        )
        for path in ("/v1/health", "/health")
    ]
    return (*run, batch, *health, MetricsRoute(path="/v1/metrics", summary="Metrics in Prometheus' text format"))


DIALECT = Dialect(
    name="zeroboot",
    title="zeroboot",
    prefix="/zeroboot",
    routes=_routes(),
    render_error=render_error,
    error_type=ErrorReply,
    description="Run code in a sandbox forked from a warm template.",
)
