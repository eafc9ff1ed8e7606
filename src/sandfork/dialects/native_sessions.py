"""Our own API beside executions: sessions, their files and terminals, and tasks.

A path names a session, and a file by its path in the sandbox: relative to the work directory, or absolute when a second
slash says so (`/v1/sessions/S/files//tmp/x`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qs

import msgspec

from sandfork.dialects import actions, fields
from sandfork.dialects.base import ActionRoute, Bounds, RawRequest, Reply, Route, TerminalRoute
from sandfork.dialects.native_run import Shape, error_of, limits_of, override_of, result_of, run_of, usage_of
from sandfork.dialects.native_sessions_wire import (
    Done,
    ExitEvent,
    FileEntryReply,
    FilesReply,
    InputMessage,
    SessionBody,
    SessionReply,
    SessionsReply,
    SizeBody,
    TaskReply,
    TaskStatus,
    TerminalBody,
    TerminalMessage,
    TerminalReply,
    TerminalsReply,
    WrittenReply,
)
from sandfork.dialects.native_wire import ErrorReply, RunBody
from sandfork.errors import InvalidRequest, SandforkError
from sandfork.model import ExecResult, FileEntry, SessionSpec, SessionState, TerminalSpec, TerminalState

OCTETS = "application/octet-stream"
SESSION = "/v1/sessions/{session}"
FILE = f"{SESSION}/files/{{path:path}}"
TERMINALS = f"{SESSION}/terminals"
TERMINAL = f"{TERMINALS}/{{terminal}}"

_session_body = msgspec.json.Decoder(SessionBody)
_run_body = msgspec.json.Decoder(RunBody)
_terminal_body = msgspec.json.Decoder(TerminalBody)
_size_body = msgspec.json.Decoder(SizeBody)
_terminal_message = msgspec.json.Decoder(TerminalMessage)
_encode = msgspec.json.Encoder().encode


def in_session(raw: RawRequest) -> str:
    """Return the session that the path names."""
    return raw.params["session"]


def _value(raw: RawRequest, name: str, default: str) -> str:
    """Return a value of the query. *Raises* InvalidRequest when it is there twice or is no text."""
    try:
        values = parse_qs(raw.query.decode(), keep_blank_values=True, errors="strict").get(name, [default])
    except ValueError:
        raise InvalidRequest(name, "is not valid UTF-8") from None
    if len(values) > 1:
        raise InvalidRequest(name, "is given more than once")
    return values[0]


def parse_create(raw: RawRequest, bounds: Bounds) -> actions.Action:
    """Read what a session is to be."""
    body = fields.decode_body(_session_body, raw.body or b"{}")
    spec = SessionSpec(
        language=None if body.language is msgspec.UNSET else body.language,
        limits=override_of(body.limits),
        env=tuple(body.env.items()),
        lifetime_s=body.lifetime_s,
        idle_s=body.idle_s,
        metadata=body.metadata,
    )
    return actions.CreateSession(spec, body.id)


def parse_task(raw: RawRequest, bounds: Bounds) -> actions.Action:
    """Read what to run without a client."""
    return actions.StartTask(run_of(fields.decode_body(_run_body, raw.body), bounds))


def parse_open(raw: RawRequest, bounds: Bounds) -> actions.Action:
    """Read what terminal to open."""
    body = fields.decode_body(_terminal_body, raw.body or b"{}")
    return actions.OpenTerminal(
        in_session(raw), TerminalSpec(tuple(body.argv), body.cols, body.rows, tuple(body.env.items()))
    )


def parse_resize(raw: RawRequest, bounds: Bounds) -> actions.Action:
    """Read the new size of a terminal."""
    size = fields.decode_body(_size_body, raw.body)
    return actions.ResizeTerminal(in_session(raw), raw.params["terminal"], size.cols, size.rows)


def _session_reply(state: SessionState) -> SessionReply:
    return SessionReply(
        state.name,
        state.language,
        fields.instant(state.created_s),
        fields.instant(state.last_used_s),
        fields.instant(state.expires_s),
        state.busy,
        state.executions,
        limits_of(state.limits),
        usage_of(state.usage),
        state.metadata,
    )


def _terminal_reply(state: TerminalState) -> TerminalReply:
    return TerminalReply(
        state.name,
        state.session,
        list(state.argv),
        state.cols,
        state.rows,
        fields.instant(state.created_s),
        state.exit_code,
    )


def render_session(action: actions.Action, state: SessionState, request_id: str) -> Reply:
    """Tell a session; 201 for one just made."""
    return Reply(_encode(_session_reply(state)), 201 if isinstance(action, actions.CreateSession) else 200)


def render_sessions(action: actions.Action, states: Sequence[SessionState], request_id: str) -> Reply:
    """Tell all sessions of the caller."""
    return Reply(_encode(SessionsReply([_session_reply(state) for state in states])))


def render_done(action: actions.Action, nothing: None, request_id: str) -> Reply:
    """Tell that it was done."""
    return Reply(_encode(Done()))


def render_files(action: actions.Action, entries: Sequence[FileEntry], request_id: str) -> Reply:
    """Tell what is in a directory."""
    assert isinstance(action, actions.ListFiles)
    told = [FileEntryReply(fields.path_text(each.name), each.kind, each.size_bytes) for each in entries]
    return Reply(_encode(FilesReply(action.path, told)))


def render_written(action: actions.Action, size_bytes: int, request_id: str) -> Reply:
    """Tell what was written."""
    assert isinstance(action, actions.WriteFile)
    return Reply(_encode(WrittenReply(action.path, size_bytes)))


def render_content(action: actions.Action, size_bytes: int, request_id: str) -> actions.FileReply:
    """Give a file as it is."""
    return actions.FileReply()


def render_terminal(action: actions.Action, state: TerminalState, request_id: str) -> Reply:
    """Tell a terminal; 201 for one just opened."""
    return Reply(_encode(_terminal_reply(state)), 201 if isinstance(action, actions.OpenTerminal) else 200)


def render_terminals(action: actions.Action, states: Sequence[TerminalState], request_id: str) -> Reply:
    """Tell all terminals of a session."""
    return Reply(_encode(TerminalsReply([_terminal_reply(state) for state in states])))


def render_task(action: actions.Action, state: Any, request_id: str) -> Reply:
    """Tell a task, and what came of it once something did; 202 for one just begun."""
    ended: ExecResult | SandforkError | None = state.ended
    result = result_of(ended, Shape()) if isinstance(ended, ExecResult) else None
    error: ErrorReply | None = error_of(ended, request_id) if isinstance(ended, SandforkError) else None
    status: TaskStatus = "running" if ended is None else "ended" if error is None else "failed"
    body = TaskReply(state.task_id, status, fields.instant(state.created_s), result, error)
    return Reply(_encode(body), 202 if isinstance(action, actions.StartTask) else 200)


def select_terminal(raw: RawRequest) -> tuple[str, str]:
    """Return the names of the session and the terminal of a path."""
    return in_session(raw), raw.params["terminal"]


def receive(message: str | bytes) -> actions.Told:
    """Read what a client of a terminal sends. *Raises* InvalidRequest."""
    if isinstance(message, bytes):
        return actions.Input(message)
    told = fields.decode_body(_terminal_message, message.encode("utf-8", "surrogatepass"))
    if isinstance(told, InputMessage):
        return actions.Input(told.text.encode())
    return actions.Resize(told.cols, told.rows)


def exited(exit_code: int | None) -> str:
    """Tell that the command of a terminal is over."""
    return _encode(ExitEvent(exit_code)).decode()


_SESSIONS: tuple[Route, ...] = (
    ActionRoute(
        method="POST",
        path="/v1/sessions",
        summary="Make a session: a sandbox that is kept between runs",
        parse=parse_create,
        render=render_session,
        body_type=SessionBody,
        reply_type=SessionReply,
        cost=1,
        status=201,
    ),
    ActionRoute(
        method="GET",
        path="/v1/sessions",
        summary="List your sessions",
        parse=lambda raw, bounds: actions.ListSessions(),
        render=render_sessions,
        reply_type=SessionsReply,
    ),
    ActionRoute(
        method="GET",
        path=SESSION,
        summary="State of a session",
        parse=lambda raw, bounds: actions.ReadSession(in_session(raw)),
        render=render_session,
        reply_type=SessionReply,
    ),
    ActionRoute(
        method="DELETE",
        path=SESSION,
        summary="End a session and everything in it",
        parse=lambda raw, bounds: actions.DeleteSession(in_session(raw)),
        render=render_done,
        reply_type=Done,
    ),
    ActionRoute(
        method="POST",
        path=f"{SESSION}/interrupt",
        summary="Interrupt what runs in a session, as Ctrl-C does",
        parse=lambda raw, bounds: actions.InterruptSession(in_session(raw)),
        render=render_done,
        reply_type=Done,
    ),
)


_FILES: tuple[Route, ...] = (
    ActionRoute(
        method="GET",
        path=f"{SESSION}/files",
        summary="List a directory of a session",
        parse=lambda raw, bounds: actions.ListFiles(in_session(raw), _value(raw, "path", ".")),
        render=render_files,
        reply_type=FilesReply,
        query=("path",),
    ),
    ActionRoute(
        method="GET",
        path=FILE,
        summary="Read a file of a session",
        parse=lambda raw, bounds: actions.ReadFile(in_session(raw), raw.params["path"]),
        render=render_content,
        reply_content=OCTETS,
    ),
    ActionRoute(
        method="PUT",
        path=FILE,
        summary="Write a file of a session; the body is its content",
        parse=lambda raw, bounds: actions.WriteFile(in_session(raw), raw.params["path"]),
        render=render_written,
        reply_type=WrittenReply,
        upload=True,
    ),
    ActionRoute(
        method="DELETE",
        path=FILE,
        summary="Remove a file or a directory of a session",
        parse=lambda raw, bounds: actions.DeleteFile(in_session(raw), raw.params["path"]),
        render=render_done,
        reply_type=Done,
    ),
)


_TERMINALS: tuple[Route, ...] = (
    ActionRoute(
        method="POST",
        path=TERMINALS,
        summary="Open a terminal in a session",
        parse=parse_open,
        render=render_terminal,
        body_type=TerminalBody,
        reply_type=TerminalReply,
        cost=1,
        status=201,
    ),
    ActionRoute(
        method="GET",
        path=TERMINALS,
        summary="List the terminals of a session",
        parse=lambda raw, bounds: actions.ListTerminals(in_session(raw)),
        render=render_terminals,
        reply_type=TerminalsReply,
    ),
    ActionRoute(
        method="GET",
        path=TERMINAL,
        summary="State of a terminal",
        parse=lambda raw, bounds: actions.ReadTerminal(*select_terminal(raw)),
        render=render_terminal,
        reply_type=TerminalReply,
    ),
    ActionRoute(
        method="PATCH",
        path=TERMINAL,
        summary="Tell a terminal its size",
        parse=parse_resize,
        render=render_terminal,
        body_type=SizeBody,
        reply_type=TerminalReply,
    ),
    ActionRoute(
        method="DELETE",
        path=TERMINAL,
        summary="End a terminal and what runs in it",
        parse=lambda raw, bounds: actions.CloseTerminal(*select_terminal(raw)),
        render=render_done,
        reply_type=Done,
    ),
    TerminalRoute(
        path=f"{TERMINAL}/ws",
        summary="Connect to a terminal: what it shows is binary messages, what is typed binary or text ones",
        select=select_terminal,
        receive=receive,
        exited=exited,
        message_type=TerminalMessage,
        event_type=ExitEvent,
    ),
)


_TASKS: tuple[Route, ...] = (
    ActionRoute(
        method="POST",
        path="/v1/tasks",
        summary="Begin a run that goes on without its client",
        parse=parse_task,
        render=render_task,
        body_type=RunBody,
        reply_type=TaskReply,
        cost=1,
        status=202,
    ),
    ActionRoute(
        method="GET",
        path="/v1/tasks/{task}",
        summary="What came of such a run so far",
        parse=lambda raw, bounds: actions.ReadTask(raw.params["task"]),
        render=render_task,
        reply_type=TaskReply,
    ),
)


ROUTES = (*_SESSIONS, *_FILES, *_TERMINALS, *_TASKS)
