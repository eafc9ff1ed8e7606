"""isol8's API: run code, plainly, as a stream of events or over a WebSocket; sessions whose files persist.

What its document leaves open:

- A run that hits its timeout is 200 with exit code 137, and `EXECUTION TIMED OUT` stands in the last line of its
  stderr. In a stream that is an `error` event before the `exit` event.
- The timeout of the request wins over that of the options; above the server's maximum it is lowered to it. Any other
  option above a ceiling is refused with 403.
- `cpuLimit` holds for all processes of a sandbox together, of a session for as long as it lives.
- `sandboxSize` and `tmpSize` are one file system here, as large as both.
- A session is made by the first run that names it, with that run's options, and takes programs in one runtime. Its
  files persist and its interpreter does not. A stream never belongs to one; a run over a WebSocket does if it says so.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import NamedTuple
from urllib.parse import parse_qs

import msgspec
from msgspec import UNSET

from sandfork.dialects.actions import (
    Action,
    Begin,
    DeleteSession,
    FileReply,
    Input,
    ListSessions,
    ReadFile,
    Signal,
    Told,
    WriteFile,
)
from sandfork.dialects.base import (
    ActionRoute,
    Answer,
    Ask,
    BodyMark,
    Bounds,
    Dialect,
    Example,
    ExecRoute,
    HealthRoute,
    RawRequest,
    Reply,
    Route,
    ServiceHealth,
    SocketRoute,
)
from sandfork.dialects.fields import around_content, decode_body, text, to_base64, with_last_line
from sandfork.dialects.isol8_events import Events, exit_code, message_of, timed_out
from sandfork.dialects.isol8_request import read_run, runtime_of, whole_path
from sandfork.dialects.isol8_wire import (
    DOWNLOAD_EXAMPLES,
    EXEC_EXAMPLES,
    ONE_PROGRAM,
    STREAM_EXAMPLES,
    UPLOAD_EXAMPLES,
    ContentReply,
    DoneReply,
    ErrorReply,
    Event,
    ExecBody,
    ExecReply,
    ExecuteMessage,
    HealthReply,
    Message,
    ResourceUsage,
    RunRequest,
    SessionReply,
    SessionsReply,
    SignalMessage,
    StdinMessage,
    UploadBody,
)
from sandfork.dialects.refusals import error_headers, status_of
from sandfork.errors import InvalidRequest, SandforkError, Unauthenticated
from sandfork.model import ExecResult, OutputFile, SessionState, Usage

MIB = 1 << 20
LEAST_S = 1e-6
"""In less time than this nothing can be measured."""
UNKNOWN_MESSAGE = "Unknown message type"
SIGNALS = {
    each.name: int(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL, signal.SIGHUP, signal.SIGQUIT)
}

_body = msgspec.json.Decoder(ExecBody)
_upload = msgspec.json.Decoder(UploadBody)
_message: msgspec.json.Decoder[ExecuteMessage | StdinMessage | SignalMessage] = msgspec.json.Decoder(Message)
_encode = msgspec.json.Encoder().encode


class Asked(NamedTuple):
    """What the reply to a run repeats of the request; `session` is "" outside one."""

    runtime: str
    session: str
    paths: tuple[str, ...]


def parse_exec(raw: RawRequest, bounds: Bounds) -> Ask:
    """Read one run. *Raises* InvalidRequest, Forbidden, NotSupported."""
    body = decode_body(_body, raw.body)
    return Ask((read_run(body, bounds),), _asked(body, body.session_id or ""))


def parse_stream(raw: RawRequest, bounds: Bounds) -> Ask:
    """Read one run that is told as it goes, in no session. *Raises* InvalidRequest, Forbidden, NotSupported."""
    body = decode_body(_body, raw.body)
    return Ask((read_run(body, bounds, in_session=False),), _asked(body, ""), writer=Events("data: ", "\n\n"))


def _asked(body: ExecBody, session: str) -> Asked:
    return Asked(runtime_of(body.request), session, tuple(body.request.output_paths or ()))


def render_exec(ask: Ask, answers: Sequence[Answer], request_id: str) -> Reply:
    """Answer one run."""
    result, asked = answers[0], ask.echo
    assert isinstance(result, ExecResult)  # no error of ours is a result here
    line = timed_out(result)
    duration_s = result.timings.fork_s + result.timings.exec_s
    reply = ExecReply(
        stdout=text(result.stdout),
        stderr=with_last_line(result.stderr, line) if line else text(result.stderr),
        exit_code=exit_code(result),
        duration_ms=round(duration_s * 1000),
        truncated=result.truncated,
        execution_id=result.exec_id,
        runtime=asked.runtime,
        timestamp=_instant(result.started_s),
        container_id=asked.session or result.exec_id,
        resource_usage=_resources(result.usage, duration_s),
        files=_files(asked.paths, result.files) if asked.paths else UNSET,
    )
    return Reply(_encode(reply))


def _files(asked: Sequence[str], found: Sequence[OutputFile]) -> dict[str, str]:
    """Return the files that are there, by the paths as they were asked for."""
    contents = {whole_path(file.path): file.content for file in found}
    return {path: to_base64(contents[whole_path(path)]) for path in asked if whole_path(path) in contents}


def _resources(usage: Usage, duration_s: float) -> ResourceUsage:
    cpu_s = usage.cpu_user_s + usage.cpu_system_s
    return ResourceUsage(
        cpu_percent=round(100 * cpu_s / duration_s, 1) if duration_s > LEAST_S else 0.0,
        memory_mb=round(usage.memory_current_bytes / MIB, 2),
        peak_memory_mb=round(usage.memory_peak_bytes / MIB, 2),
    )


def _instant(unix_s: float) -> str:
    """Return an instant in UTC and milliseconds: 2026-02-14T12:00:00.000Z."""
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def receive(message: str | bytes, bounds: Bounds) -> Told:
    """Read a message of a WebSocket. *Raises* InvalidRequest, Forbidden, NotSupported."""
    said = _read_message(message.encode("utf-8", "surrogatepass") if isinstance(message, str) else message)
    if isinstance(said, StdinMessage):
        return Input(said.data.encode())
    if isinstance(said, SignalMessage):
        if said.signal not in SIGNALS:
            raise InvalidRequest("signal", f"must be one of {', '.join(SIGNALS)}")
        return Signal(SIGNALS[said.signal])
    request = replace(read_run(said, bounds), keep_stdin=said.keep_stdin)
    return Begin(Ask((request,), writer=Events("", "\n")))


def _read_message(message: bytes) -> ExecuteMessage | StdinMessage | SignalMessage:
    try:
        return decode_body(_message, message)
    except InvalidRequest as error:
        if error.field == "type":
            raise InvalidRequest("type", UNKNOWN_MESSAGE) from None
        raise InvalidRequest("", f"Invalid JSON: {error.reason}") if not error.field else error from None


def refuse(error: SandforkError, request_id: str) -> str:
    """Return the event that tells of a message that is refused."""
    return Events("", "\n").failed(error, request_id)


def parse_upload(raw: RawRequest, bounds: Bounds) -> Action:
    """Read which file is written. *Raises* InvalidRequest."""
    body = decode_body(_upload, raw.body)
    return WriteFile(body.session_id, body.path)


def parse_download(raw: RawRequest, bounds: Bounds) -> Action:
    """Read which file is wanted. *Raises* InvalidRequest."""
    query = parse_qs(raw.query.decode("ascii", "replace"))
    session, path = (query.get(name, [""])[0] for name in ("sessionId", "path"))
    if not session or not path:
        raise InvalidRequest("", "Missing sessionId or path")
    return ReadFile(session, path)


def parse_delete(raw: RawRequest, bounds: Bounds) -> Action:
    """Read which session is to end; one that is not there is as good as ended."""
    return DeleteSession(raw.params["id"], missing=True)


def parse_list(raw: RawRequest, bounds: Bounds) -> Action:
    """Ask for all sessions."""
    return ListSessions()


def render_done(action: Action, came: object, request_id: str) -> Reply:
    """Say that it is done."""
    return Reply(_encode(DoneReply()))


def render_file(action: Action, size_bytes: int, request_id: str) -> FileReply:
    """Give a file."""
    return FileReply(around_content(ContentReply("")))


def render_sessions(action: Action, states: Sequence[SessionState], request_id: str) -> Reply:
    """List sessions."""
    listed = [SessionReply(state.name, state.busy, _instant(state.last_used_s)) for state in states]
    return Reply(_encode(SessionsReply(listed)))


def render_health(health: ServiceHealth) -> Reply:
    """Answer 200 when a template is ready, else 503."""
    status, word = (200, "ok") if health.ready else (503, "unavailable")
    return Reply(_encode(HealthReply(word, health.version)), status)


def render_error(error: SandforkError, request_id: str) -> Reply:
    """Answer an error in one sentence. A wrong key is 403 here, a missing one 401."""
    status = 403 if isinstance(error, Unauthenticated) and not error.missing else status_of(error)
    return Reply(_encode(ErrorReply(message_of(error))), status, headers=error_headers(error))


_RUNS: tuple[Route, ...] = (
    ExecRoute(
        path="/execute",
        summary="Execute code and return the full result",
        parse=parse_exec,
        render=render_exec,
        body_type=ExecBody,
        reply_type=ExecReply,
        examples=EXEC_EXAMPLES,
        at_root=True,
        mark=BodyMark(("request",)),
    ),
    ExecRoute(
        path="/execute/stream",
        summary="Execute code and stream its output",
        parse=parse_stream,
        render=render_exec,
        body_type=ExecBody,
        event_type=Event,
        examples=STREAM_EXAMPLES,
        at_root=True,
    ),
    SocketRoute(
        path="/execute/ws",
        summary="Execute code over a WebSocket",
        receive=receive,
        refuse=refuse,
        close_code=1003,
        single=True,
        early=True,
        message_type=Message,
        event_type=Event,
        at_root=True,
    ),
)
_SESSIONS: tuple[Route, ...] = (
    ActionRoute(
        method="POST",
        path="/file",
        summary="Upload a file to a session",
        parse=parse_upload,
        render=render_done,
        body_type=UploadBody,
        upload=True,
        lifted="content",
        reply_type=DoneReply,
        examples=UPLOAD_EXAMPLES,
        at_root=True,
    ),
    ActionRoute(
        method="GET",
        path="/file",
        summary="Download a file from a session",
        parse=parse_download,
        render=render_file,
        query=("sessionId", "path"),
        reply_type=ContentReply,
        examples=DOWNLOAD_EXAMPLES,
        at_root=True,
    ),
    ActionRoute(
        method="DELETE",
        path="/session/{id}",
        summary="Stop and remove a session",
        parse=parse_delete,
        render=render_done,
        reply_type=DoneReply,
        at_root=True,
    ),
    ActionRoute(
        method="GET",
        path="/sessions",
        summary="List your sessions",
        parse=parse_list,
        render=render_sessions,
        reply_type=SessionsReply,
        at_root=True,
    ),
)

DIALECT = Dialect(
    name="isol8",
    title="isol8",
    prefix="/isol8",
    routes=(
        *_RUNS,
        *_SESSIONS,
        HealthRoute(
            path="/health",
            summary="Health check",
            render=render_health,
            reply_type=HealthReply,
            examples=(Example("Healthy", reply=b'{"status": "ok", "version": "0.1.0"}'),),
        ),
    ),
    render_error=render_error,
    error_type=ErrorReply,
    description="Execute code in sandboxes; sessions keep files.",
    refinements={RunRequest: ONE_PROGRAM},
)
