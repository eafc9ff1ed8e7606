"""InstaVM's API, as its SDK and command line speak it: programs in sessions, files, tasks, egress, terminals.

What its document leaves open:

- A session is its VM: both have one id. The first execution without a session makes one and tells its id; an execution
  in one that is over, or never was, makes it anew.
- A key is the one of `Authorization` or `X-API-Key`, else `api_key` in a JSON body, and in the query of a terminal's
  WebSocket.
- A wrong type or range is 422 with `loc`, `msg` and `type`; any other error is a sentence in `detail`.
- What this server does not have (networks, snapshots, volumes, vaults …) is 501 and says so.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qs

import msgspec

from sandfork.dialects.base import Dialect, Example, HealthRoute, RawRequest, Reply, ServiceHealth
from sandfork.dialects.instavm_routes import ROUTES
from sandfork.dialects.instavm_wire import ONE_PROGRAM, ErrorReply, ExecBody, HealthReply, Problem
from sandfork.dialects.refusals import error_headers, public_message, status_of
from sandfork.errors import (
    InvalidRequest,
    SandforkError,
    Unauthenticated,
    UnknownLanguage,
)

UNPROCESSABLE = 422

_PART = re.compile(r"[^.\[\]]+")
_encode = msgspec.json.Encoder().encode


class KeyBody(msgspec.Struct, frozen=True):
    """The one field of a body that is read before its caller is known."""

    api_key: Any = None


_key_body = msgspec.json.Decoder(KeyBody)


def find_key(raw: RawRequest) -> bytes | None:
    """Return the key that a request has elsewhere than in a header, None when it has none."""
    key: Any = None
    if raw.body:
        try:
            key = _key_body.decode(raw.body).api_key
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            return None
    elif "pty_id" in raw.params:
        key = parse_qs(raw.query.decode("latin-1")).get("api_key", [None])[-1]
    return key.encode() if isinstance(key, str) and key else None


def render_error(error: SandforkError, request_id: str) -> Reply:
    """Answer an error: what is wrong with which field, or a sentence."""
    headers = error_headers(error)
    if isinstance(error, InvalidRequest):
        return Reply(_encode(ErrorReply([_problem(error)])), UNPROCESSABLE, headers=headers)
    if isinstance(error, UnknownLanguage):
        problem = Problem(["body", "language"], public_message(error), "value_error")
        return Reply(_encode(ErrorReply([problem])), UNPROCESSABLE, headers=headers)
    detail = public_message(error)
    if isinstance(error, Unauthenticated):
        detail = "Not authenticated" if error.missing else "Invalid API key"
    return Reply(_encode(ErrorReply(detail)), status_of(error), headers=headers)


def _problem(error: InvalidRequest) -> Problem:
    where: list[str | int] = [int(part) if part.isdecimal() else part for part in _PART.findall(error.field)]
    if where[:1] != ["query"]:
        where.insert(0, "body")
    missing = error.reason.startswith("is required")
    return Problem(where, "Field required" if missing else error.reason, "missing" if missing else "value_error")


def render_health(health: ServiceHealth) -> Reply:
    """Answer 200 when a template is ready, else 503."""
    status, word = (200, "healthy") if health.ready else (503, "unhealthy")
    return Reply(_encode(HealthReply(word, health.version)), status)


DIALECT = Dialect(
    name="instavm",
    title="InstaVM",
    prefix="/instavm",
    routes=(
        *ROUTES,
        HealthRoute(
            path="/health",
            summary="Health check",
            render=render_health,
            reply_type=HealthReply,
            examples=(Example("Healthy", reply=b'{"status": "healthy", "version": "1.0.0"}'),),
        ),
    ),
    render_error=render_error,
    error_type=ErrorReply,
    description="Run code in sessions that keep its state.",
    key_in_request=find_key,
    refinements={ExecBody: ONE_PROGRAM},
    error_statuses=(400, 401, 403, 404, 405, 408, 409, 413, 415, UNPROCESSABLE, 429, 500, 501, 503),
)
