"""Our own API: zeroboot's four endpoints with every further thing a run can be given and can tell, and sessions.

A client of zeroboot needs no change: every field it knows is here and means the same. Choices of our own:

- `files` of a reply are `{"base64": …}` each, as in a request. With `files_as: "text"` those that are valid UTF-8 come
  as plain strings and the rest stay base64, so nothing is lost.
- A wall time above the server's maximum, however named, is lowered to it, and `limits` of the reply tells; every other
  limit above a ceiling is refused with 403. `limits.wall_s` wins over `timeout_seconds`.
- Machinery of ours that fails is a 5xx, not a result. In a batch it is an item with `error`, and the others run.
- A session must have been made; a name that is none is 404 rather than a new session whose state is not the one meant.

`native_run` translates programs and results, `native_events` what is told on the way, `native_sessions` the rest.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

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
    SocketRoute,
)
from sandfork.dialects.native_events import Event, Message, StartMessage, receive, refuse, sse, writer
from sandfork.dialects.native_run import SPACE, error_of, reply_of, request_of, run_of, shape_of
from sandfork.dialects.native_sessions import ROUTES, in_session
from sandfork.dialects.native_wire import (
    BATCH_EXAMPLES,
    EXEC_EXAMPLES,
    ONE_PROGRAM,
    BatchBody,
    BatchReply,
    ErrorReply,
    ExecBody,
    ExecReply,
    HealthReply,
    ProgramBody,
    RunBody,
    SessionExecBody,
    TemplateState,
)
from sandfork.dialects.refusals import error_headers, status_of
from sandfork.errors import CapacityError, InvalidRequest, SandforkError, TierError

_exec_body = msgspec.json.Decoder(ExecBody)
_session_exec_body = msgspec.json.Decoder(SessionExecBody)
_batch_body = msgspec.json.Decoder(BatchBody)
_encode = msgspec.json.Encoder().encode


def parse_exec(raw: RawRequest, bounds: Bounds) -> Ask:
    """Read one run. *Raises* InvalidRequest, NotSupported."""
    body = fields.decode_body(_exec_body, raw.body)
    return _ask(body, bounds, body.session, stream=body.stream)


def parse_exec_in_session(raw: RawRequest, bounds: Bounds) -> Ask:
    """Read one run in the session that the path names. *Raises* InvalidRequest, NotSupported."""
    body = fields.decode_body(_session_exec_body, raw.body)
    return _ask(body, bounds, in_session(raw), stream=body.stream)


def _ask(body: ProgramBody, bounds: Bounds, session: str | None, *, stream: bool) -> Ask:
    shape = shape_of(body, session)
    return Ask((request_of(body, bounds, session),), (shape,), writer=writer(shape, sse) if stream else None)


def parse_batch(raw: RawRequest, bounds: Bounds) -> Ask:
    """Read a batch; it may be empty. *Raises* InvalidRequest, NotSupported."""
    items = fields.decode_body(_batch_body, raw.body).executions
    if len(items) > bounds.max_batch:
        raise InvalidRequest("executions", f"holds {len(items)} items, more than {bounds.max_batch}")
    requests = tuple(run_of(item, bounds, f"executions[{index}].") for index, item in enumerate(items))
    return Ask(requests, tuple(shape_of(item, item.session) for item in items))


def render_exec(ask: Ask, answers: Sequence[Answer], request_id: str) -> Reply:
    """Answer one run."""
    return Reply(_encode(reply_of(answers[0], ask.echo[0], request_id)))


def render_batch(ask: Ask, answers: Sequence[Answer], request_id: str) -> Reply:
    """Answer a batch, in the order asked."""
    pairs = zip(answers, ask.echo, strict=True)
    return Reply(_encode(BatchReply([reply_of(answer, shape, request_id) for answer, shape in pairs])))


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
    return Reply(_encode(error_of(error, request_id)), status_of(error), headers=error_headers(error))


def _exec_routes() -> tuple[Route, ...]:
    plain = [
        ExecRoute(
            path=path,
            summary="Run code or a command in a freshly forked sandbox",
            parse=parse_exec,
            render=render_exec,
            body_type=ExecBody,
            reply_type=ExecReply,
            event_type=Event,
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
    session = ExecRoute(
        path="/v1/sessions/{session}/exec",
        summary="Run code in a session, in its interpreter",
        parse=parse_exec_in_session,
        render=render_exec,
        body_type=SessionExecBody,
        reply_type=ExecReply,
        event_type=Event,
        examples=EXEC_EXAMPLES,
    )
    return (*plain, batch, session)


def _routes() -> tuple[Route, ...]:
    socket = SocketRoute(
        path="/v1/exec/ws",
        summary="Run programs over a WebSocket, with standard input and signals while they run",
        receive=receive,
        refuse=refuse,
        message_type=Message,
        event_type=Event,
    )
    health = [
        HealthRoute(path=path, summary="State of the templates", render=render_health, reply_type=HealthReply)
        for path in ("/v1/health", "/health")
    ]
    metrics = MetricsRoute(path="/v1/metrics", summary="Metrics for Prometheus")
    return (*_exec_routes(), socket, *ROUTES, *health, metrics)


DIALECT = Dialect(
    name=SPACE,
    title="sandfork",
    prefix="",
    routes=_routes(),
    render_error=render_error,
    error_type=ErrorReply,
    refinements=dict.fromkeys((RunBody, ExecBody, SessionExecBody, StartMessage), ONE_PROGRAM),
    description="Run untrusted code in a sandbox forked from a warm template.",
)
