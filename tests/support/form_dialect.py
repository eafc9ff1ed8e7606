"""A dialect with what only some have: forms, and API keys in bodies and queries."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qs

import msgspec

from sandfork.dialects.actions import Action, FileReply, ListSessions, ReadFile, Told, WriteFile
from sandfork.dialects.base import (
    ActionRoute,
    Ask,
    Bounds,
    Dialect,
    ExecRoute,
    RawRequest,
    Reply,
    SocketRoute,
)
from sandfork.dialects.native_events import receive, refuse
from sandfork.errors import InvalidRequest, SandforkError
from sandfork.model import ExecRequest, Snippet


class Body(msgspec.Struct):
    """A JSON body."""

    api_key: str = ""


def parse_upload(raw: RawRequest, bounds: Bounds) -> Action:
    """Read where the file of a form goes."""
    assert raw.form is not None
    if raw.file is None:
        raise InvalidRequest("file", "is required")
    name = raw.form.get("path", raw.file.filename)
    return WriteFile(raw.form["session"], name)


def parse_form(raw: RawRequest, bounds: Bounds) -> Action:
    """Read what file to give."""
    form = raw.form if raw.form is not None else json.loads(raw.body)
    return ReadFile(form["session"], form["path"])


def render(action: Action, value: Any, request_id: str) -> Reply | FileReply:
    """Give back what was found out."""
    if isinstance(action, ReadFile):
        return FileReply()
    return Reply(value if isinstance(value, bytes) else msgspec.json.encode(value))


def render_error(error: SandforkError, request_id: str) -> Reply:
    """Tell the error's word."""
    status = {"unauthenticated": 401, "payload_too_large": 413, "overloaded": 503, "file_not_in_sandbox": 404}
    return Reply(json.dumps({"code": error.code, "text": str(error)}).encode(), status.get(error.code, 400))


def key_in_request(raw: RawRequest) -> bytes | None:
    """Return the key of the body or the query."""
    if raw.body:
        try:
            return str(json.loads(raw.body)["api_key"]).encode()
        except (ValueError, KeyError, TypeError):
            return None
    values = parse_qs(raw.query).get(b"api_key")
    return values[0] if values else None


def parse_exec(raw: RawRequest, bounds: Bounds) -> Ask:
    """Read a program."""
    return Ask((ExecRequest(Snippet("python", raw.body.decode())),))


def receive_message(message: str | bytes, bounds: Bounds) -> Told:
    """Read a message of ours."""
    return receive(message, bounds)


DIALECT = Dialect(
    name="forms",
    title="Forms",
    prefix="/forms",
    routes=(
        ActionRoute(
            method="POST", path="/upload", summary="", parse=parse_upload, render=render, form=True, upload=True
        ),
        ActionRoute(
            method="POST", path="/download", summary="", parse=parse_form, render=render, form=True, body_type=Body
        ),
        ActionRoute(method="GET", path="/list", summary="", parse=lambda raw, bounds: ListSessions(), render=render),
        ExecRoute(
            path="/exec",
            summary="",
            parse=parse_exec,
            render=lambda ask, answers, request_id: Reply(b"{}"),
            body_type=Body,
        ),
        SocketRoute(
            path="/once",
            summary="",
            receive=receive_message,
            refuse=refuse,
            close_code=1003,
            single=True,
        ),
    ),
    render_error=render_error,
    error_type=Body,
    key_in_request=key_in_request,
)
