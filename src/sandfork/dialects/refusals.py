"""Errors as HTTP has them: those of a request that is wrong before any dialect reads it, and what all dialects share of
answering one: the status, the headers, what a caller may read.
"""

from __future__ import annotations

import http

import msgspec

from sandfork.dialects.base import Reply
from sandfork.errors import (
    CallerError,
    CapacityError,
    DiskFull,
    FileNotInSandbox,
    FileTooLarge,
    Forbidden,
    ImageError,
    NotInBucket,
    NotSupported,
    PayloadTooLarge,
    RateLimited,
    SandforkError,
    SessionConflict,
    SessionNotFound,
    SnapshotConflict,
    SnapshotNotFound,
    TierError,
    TierUnavailable,
    Unauthenticated,
)


class WireError(CallerError):
    """The request is wrong as HTTP, before any dialect reads its body."""

    status = 400


class NotRun(CallerError):
    """An earlier execution of the same request did not end as it had to for this one to run."""

    code = "not_run"


class NoSuchPath(WireError):
    """Nothing answers at this path."""

    code = "not_found"
    status = 404


class NoSuchLanguage(WireError):
    """The path names a language that this server does not know."""

    code = "unknown_language"
    status = 404


class MethodNotAllowed(WireError):
    """The path answers, but not to this method; `allow` lists those it answers to."""

    code = "method_not_allowed"
    status = 405

    def __init__(self, method: str, allow: tuple[str, ...]) -> None:
        super().__init__(f"method {method} is not allowed here, only {', '.join(allow)}")
        self.allow = allow


class UnsupportedMedia(WireError):
    """The body's content type or encoding is not one we read."""

    code = "unsupported_media_type"
    status = 415


class CrossOrigin(WireError):
    """A page of another origin made a browser send this."""

    code = "cross_origin"
    status = 403


class UpgradeRequired(WireError):
    """The path is that of a WebSocket, and this is a plain request."""

    code = "upgrade_required"
    status = 426


class BodyTimeout(WireError):
    """The body did not arrive in time."""

    code = "body_timeout"
    status = 408


STATUSES: tuple[tuple[type[SandforkError], int], ...] = (
    (Unauthenticated, 401),
    (RateLimited, 429),
    (Forbidden, 403),
    (SessionNotFound, 404),
    (SessionConflict, 409),
    (FileNotInSandbox, 404),
    (SnapshotNotFound, 404),
    (SnapshotConflict, 409),
    (NotInBucket, 404),
    (PayloadTooLarge, 413),
    (FileTooLarge, 413),
    (DiskFull, 413),
    (NotSupported, 501),
    (CallerError, 400),
    (CapacityError, 503),
    (TierUnavailable, 503),
    (SandforkError, 500),
)
"""The HTTP status of each error; the first class that fits counts."""


def status_of(error: SandforkError) -> int:
    """Return the HTTP status of an error as most dialects have it."""
    if isinstance(error, WireError):
        return error.status
    if isinstance(error, TierError) and error.retry_after_s is not None:
        return 503
    return next(status for kind, status in STATUSES if isinstance(error, kind))


def error_headers(error: SandforkError) -> tuple[tuple[bytes, bytes], ...]:
    """Return the headers an error needs in every dialect: Retry-After, Allow, Upgrade, WWW-Authenticate."""
    headers: list[tuple[bytes, bytes]] = []
    if error.retry_after_s is not None:
        headers.append((b"retry-after", str(max(1, -int(-error.retry_after_s // 1))).encode()))
    elif isinstance(error, RateLimited | CapacityError):
        headers.append((b"retry-after", b"1"))
    if isinstance(error, MethodNotAllowed):
        headers.append((b"allow", ", ".join(error.allow).encode()))
    if isinstance(error, UpgradeRequired):
        headers.append((b"upgrade", b"websocket"))
    if isinstance(error, Unauthenticated):
        headers.append((b"www-authenticate", b"Bearer"))
    return tuple(headers)


def public_message(error: SandforkError) -> str:
    """Return what a caller may read of an error: the whole message of its own faults, less of ours."""
    if isinstance(error, CallerError | CapacityError | ImageError) or status_of(error) in (401, 429):
        return error.message
    return f"the sandbox could not be used ({error.code})" if error.code != "internal" else "internal error"


class UndecidedError(msgspec.Struct, frozen=True):
    """An error before the dialect is known: each client finds the field it reads."""

    error: str
    details: str
    detail: str


def render_undecided(error: SandforkError, request_id: str) -> Reply:
    """Answer an error of a request that fits no dialect."""
    status, text = status_of(error), public_message(error)
    body = msgspec.json.encode(UndecidedError(error=http.HTTPStatus(status).phrase, details=text, detail=text))
    return Reply(body, status, headers=error_headers(error))
