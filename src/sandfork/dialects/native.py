"""Our own API: zeroboot's four endpoints with every further thing a run can be given and can tell.

A client of zeroboot needs no change: every field it knows is here and means the same. Choices of our own:

- `files` of a reply are `{"base64": …}` each, as in a request. With `files_as: "text"` those that are valid UTF-8 come
  as plain strings and the rest stay base64, so nothing is lost.
- A wall time above the server's maximum, however named, is lowered to it, and `limits` of the reply tells; every other
  limit above a ceiling is refused with 403. `limits.wall_s` wins over `timeout_seconds`.
- Machinery of ours that fails is a 5xx, not a result. In a batch it is an item with `error`, and the others run.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec import UNSET

from sandfork.dialects import fields
from sandfork.dialects.base import (
    Answer,
    Ask,
    Bounds,
    Dialect,
    ExecRoute,
    HealthRoute,
    MetricsRoute,
    RawRequest,
    Reply,
    Route,
    ServiceHealth,
)
from sandfork.dialects.native_wire import (
    BATCH_EXAMPLES,
    EXEC_EXAMPLES,
    ONE_PROGRAM,
    Base64Content,
    BatchBody,
    BatchReply,
    Content,
    ErrorReply,
    ExecBody,
    ExecReply,
    FailedReply,
    HealthReply,
    LimitsBody,
    LimitsReply,
    TemplateState,
    UsageReply,
)
from sandfork.dialects.refusals import error_headers, public_message, status_of
from sandfork.errors import CapacityError, InvalidRequest, NotSupported, SandforkError, TierError
from sandfork.model import (
    Command,
    ExecRequest,
    ExecResult,
    InputFile,
    Limits,
    LimitsOverride,
    Outcome,
    OutputFile,
    SessionUse,
    Snippet,
    Usage,
)

_exec_body = msgspec.json.Decoder(ExecBody)
_batch_body = msgspec.json.Decoder(BatchBody)
_encode = msgspec.json.Encoder().encode
_NO_LIMITS = LimitsBody()


def parse_exec(raw: RawRequest, bounds: Bounds) -> Ask:
    """Read one run. *Raises* InvalidRequest, NotSupported."""
    body = fields.decode_body(_exec_body, raw.body)
    return Ask((_request(body, bounds, ""),), (body.files_as,))


def parse_batch(raw: RawRequest, bounds: Bounds) -> Ask:
    """Read a batch; it may be empty. *Raises* InvalidRequest, NotSupported."""
    items = fields.decode_body(_batch_body, raw.body).executions
    if len(items) > bounds.max_batch:
        raise InvalidRequest("executions", f"holds {len(items)} items, more than {bounds.max_batch}")
    requests = tuple(_request(item, bounds, f"executions[{index}].") for index, item in enumerate(items))
    return Ask(requests, tuple(item.files_as for item in items))


def _request(body: ExecBody, bounds: Bounds, within: str) -> ExecRequest:
    if body.stream:
        raise NotSupported("stream: streamed replies are not available on this server")
    return ExecRequest(
        program=_program(body, bounds, within),
        files=tuple(_input_file(path, content, within) for path, content in body.files.items()) if body.files else (),
        stdin=_content(body.stdin, f"{within}stdin") if body.stdin else b"",
        args=tuple(body.args),
        env=tuple(body.env.items()),
        limits=_limits(body, bounds),
        network=body.network,
        isolation=body.isolation,
        template=body.template,
        session=SessionUse("native", body.session) if body.session else None,
        collect=tuple(body.collect),
        packages=tuple(body.packages),
    )


def _program(body: ExecBody, bounds: Bounds, within: str) -> Snippet | Command:
    if body.code is UNSET:
        if body.argv is UNSET:
            raise InvalidRequest(f"{within}code", "is required, or argv in its place")
        return Command(tuple(body.argv))
    if body.argv is not UNSET:
        raise InvalidRequest(f"{within}argv", "cannot be given together with code")
    return Snippet(body.language, fields.check_code(body.code, f"{within}code", bounds.max_code_bytes))


def _limits(body: ExecBody, bounds: Bounds) -> LimitsOverride:
    asked = body.limits
    if asked is _NO_LIMITS:
        return LimitsOverride(wall_s=float(min(body.timeout_seconds, bounds.max_wall_s)))
    wall_s = asked.wall_s or body.timeout_seconds
    return LimitsOverride(
        wall_s=float(min(wall_s, bounds.max_wall_s)),
        cpu_s=asked.cpu_s,
        memory_bytes=asked.memory_bytes,
        pids=asked.pids,
        open_files=asked.open_files,
        output_bytes=asked.output_bytes,
        disk_bytes=asked.disk_bytes,
    )


def _content(content: Content, field: str) -> bytes:
    return content.encode() if isinstance(content, str) else fields.from_base64(content.base64, f"{field}.base64")


def _input_file(path: str, content: Content, within: str) -> InputFile:
    return InputFile(path, _content(content, f"{within}files.{fields.shown(path)}"))


def render_exec(ask: Ask, answers: Sequence[Answer], request_id: str) -> Reply:
    """Answer one run."""
    return Reply(_encode(_reply(answers[0], ask.echo[0], request_id)))


def render_batch(ask: Ask, answers: Sequence[Answer], request_id: str) -> Reply:
    """Answer a batch, in the order asked."""
    pairs = zip(answers, ask.echo, strict=True)
    return Reply(_encode(BatchReply([_reply(answer, files_as, request_id) for answer, files_as in pairs])))


def _reply(answer: Answer, files_as: str, request_id: str) -> ExecReply | FailedReply:
    if isinstance(answer, SandforkError):
        return FailedReply(request_id, "", "", -1, 0.0, 0.0, 0.0, public_message(answer), answer.code)
    timed_out = answer.outcome is Outcome.TIMED_OUT
    stderr = answer.stderr
    timings = answer.timings
    return ExecReply(
        answer.exec_id,
        fields.text(answer.stdout),
        fields.with_last_line(stderr, fields.timed_out_line(answer.limits)) if timed_out else fields.text(stderr),
        -1 if timed_out else answer.status,
        fields.milliseconds(timings.fork_s),
        fields.milliseconds(timings.exec_s),
        fields.milliseconds(timings.total_s),
        fields.milliseconds(timings.queue_s),
        answer.outcome,
        answer.signal,
        answer.truncated,
        _usage(answer.usage),
        _effective(answer.limits),
        answer.isolation,
        _files(answer, files_as) if answer.files else {},
        [fields.path_text(path) for path in answer.files_skipped],
    )


def _usage(usage: Usage) -> UsageReply:
    return UsageReply(
        usage.cpu_user_s,
        usage.cpu_system_s,
        usage.wall_s,
        usage.memory_peak_bytes,
        usage.processes,
        usage.io_read_bytes,
        usage.io_write_bytes,
    )


def _effective(limits: Limits) -> LimitsReply:
    return LimitsReply(
        limits.wall_s,
        limits.cpu_s,
        limits.memory_bytes,
        limits.pids,
        limits.open_files,
        limits.output_bytes,
        limits.disk_bytes,
    )


def _files(result: ExecResult, files_as: str) -> dict[str, Content]:
    return {fields.path_text(file.path): _returned(file, files_as) for file in result.files}


def _returned(file: OutputFile, files_as: str) -> Content:
    content = fields.utf8_or_none(file.content) if files_as == "text" else None
    return Base64Content(fields.to_base64(file.content)) if content is None else content


def render_health(health: ServiceHealth) -> Reply:
    """Answer 200 when a template is ready, else 503."""
    templates = {
        t.key: TemplateState(t.ready, round(t.memory_bytes / (1 << 20)), t.parked, t.generation, t.reason)
        for t in health.templates
    }
    status = health.ok_word if health.ready else "unavailable"
    unenforced = list(health.unenforced)
    body = HealthReply(status, templates, health.version, fields.instant(health.now_s), health.isolation, unenforced)
    return Reply(_encode(body), 200 if health.ready else 503)


def render_error(error: SandforkError, request_id: str) -> Reply:
    """Answer an error: a sentence, a word for machines, the field at fault, the id to find it in the log."""
    field = error.field or None if isinstance(error, InvalidRequest) else None
    body = ErrorReply(public_message(error), error.code, request_id, field)
    return Reply(_encode(body), status_of(error), headers=error_headers(error))


def _routes() -> tuple[Route, ...]:
    exec_routes = [
        ExecRoute(
            path=path,
            summary="Run code or a command in a freshly forked sandbox",
            parse=parse_exec,
            render=render_exec,
            body_type=ExecBody,
            reply_type=ExecReply,
            examples=EXEC_EXAMPLES,
        )
        for path in ("/v1/exec", "/exec")
    ]
    batch = ExecRoute(
        path="/v1/exec/batch",
        summary="Run several programs in parallel, each in a sandbox of its own",
        parse=parse_batch,
        render=render_batch,
        body_type=BatchBody,
        reply_type=BatchReply,
        examples=BATCH_EXAMPLES,
        as_results=(TierError, CapacityError),
    )
    health = [
        HealthRoute(path=path, summary="State of the templates", render=render_health, reply_type=HealthReply)
        for path in ("/v1/health", "/health")
    ]
    return (*exec_routes, batch, *health, MetricsRoute(path="/v1/metrics", summary="Metrics for Prometheus"))


DIALECT = Dialect(
    name="native",
    title="sandfork",
    prefix="",
    routes=_routes(),
    render_error=render_error,
    error_type=ErrorReply,
    refinements={ExecBody: ONE_PROGRAM},
    description="Run untrusted code in a sandbox forked from a warm template.",
)
