"""What a dialect is: routes, each a pure pair of parse and render, and the errors as its clients know them.

A dialect module defines one `DIALECT`. It translates wire fields to the types of `sandfork.model` and back and does
nothing else: no I/O, no clock, no engine. Adding a dialect is adding one file to this package.

    bytes ── parse(RawRequest, Bounds) ──> Ask ── the engine ──> ExecResult | SandforkError ── render ──> Reply

A route's class says what the server does between parse and render (`ExecRoute`: run what was asked and answer when
all of it is over). A new kind of answer (an event stream, a socket, a session) is a new route class here and its
endpoint in `sandfork.http`; the dialects that do not have it stay as they are.

At root a server of all dialects speaks our own, and every path of another that is unambiguous (`at_root`). Where
several have the same path, the body's own keys tell whose it is (`BodyMark`).
"""

from __future__ import annotations

import http
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from sandfork.access_quotas import Quota
from sandfork.errors import (
    CallerError,
    CapacityError,
    FileNotInSandbox,
    Forbidden,
    NotSupported,
    PayloadTooLarge,
    RateLimited,
    SandforkError,
    SessionNotFound,
    TierError,
    TierUnavailable,
    Unauthenticated,
)
from sandfork.model import ExecRequest, ExecResult, Limits, TemplateHealth

JSON = b"application/json"

LANGUAGE: dict[str, Any] = {"x-languages": True}
"""Extra schema of a field that names a language: documents list those the server offers."""
UNAVAILABLE: dict[str, Any] = {"x-unavailable": True}
"""Extra schema of a field that is understood but refused as not supported: documents leave it out.

Where only some values are, `{"x-only": [values]}` lists the others.
"""

Answer = ExecResult | SandforkError
"""What came of one execution: its result, or why we could not give one."""


class WireError(CallerError):
    """The request is wrong as HTTP, before any dialect reads its body."""

    status = 400


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


class BodyTimeout(WireError):
    """The body did not arrive in time."""

    code = "body_timeout"
    status = 408


NO_CEILINGS = Limits(math.inf, math.inf, *[sys.maxsize] * 5)


class Bounds(msgspec.Struct, frozen=True):
    """The server's maxima a dialect must know to parse.

    `max_wall_s` and `ceilings` are also the caller's own, where those are lower. `ceilings` is for dialects with
    defaults of their own, which must not be more than a caller may have; its `wall_s` is `max_wall_s`.
    """

    max_wall_s: float = 300.0
    max_code_bytes: int = 1 << 20
    max_batch: int = 100
    ceilings: Limits = NO_CEILINGS

    def lowered_to(self, limits: Limits) -> Bounds:
        """Return these bounds, nothing above `limits`."""
        mine = self.ceilings
        ceilings = Limits(*(min(getattr(mine, f), getattr(limits, f)) for f in Limits.__dataclass_fields__))
        return Bounds(min(self.max_wall_s, limits.wall_s), self.max_code_bytes, self.max_batch, ceilings)


class RawRequest(msgspec.Struct, frozen=True):
    """A request as it came: header names are lower case; `params` are the path's; `query` is the raw string."""

    body: bytes = b""
    params: Mapping[str, str] = {}
    query: bytes = b""
    headers: Mapping[bytes, bytes] = {}


class Ask(msgspec.Struct, frozen=True):
    """What one request asks for: one execution or several.

    `echo` carries what the same route's render needs to know of the request; nobody else reads it. `cost` is what is
    charged, where that is not the number of executions.
    """

    requests: tuple[ExecRequest, ...]
    echo: Any = None
    cost: int | None = None


class Reply(msgspec.Struct, frozen=True):
    """A whole HTTP answer but for the content length."""

    body: bytes
    status: int = 200
    content_type: bytes = JSON
    headers: tuple[tuple[bytes, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class ServiceHealth:
    """What a health document may tell.

    `unenforced` names the limits this server cannot enforce; `ok_word` is the status word when all is well; `now_s` is
    Unix time.
    """

    templates: Sequence[TemplateHealth]
    version: str = ""
    isolation: str = ""
    unenforced: Sequence[str] = ()
    ok_word: str = "ok"
    now_s: float = 0.0

    @property
    def ready(self) -> bool:
        """Whether at least one template can fork."""
        return any(template.ready for template in self.templates)


@dataclass(frozen=True, slots=True)
class LanguageState:
    """A language of the catalogue as this server has it.

    `run` is the command line of a program, in which `{file}` stands for its text. `runnable` is whether it can be run
    here and now. `version` is None where it is not known.
    """

    name: str
    aliases: tuple[str, ...]
    extension: str
    run: tuple[str, ...]
    template: str
    runnable: bool
    version: str | None = None


@dataclass(frozen=True, slots=True)
class BodyMark:
    """How a body tells whose it is at a path several dialects have: by one of these keys at its top level.

    A body with `certain` marks of two dialects is nobody's; a mark that is not certain counts where no other is.
    """

    keys: tuple[str, ...]
    certain: bool = True


@dataclass(frozen=True, slots=True)
class Example:
    """One documented call: what is sent and the shape of what comes back, both JSON. Each is also a test."""

    summary: str
    request: bytes = b""
    reply: bytes = b""
    status: int = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """What every route has.

    `path` may hold `{name}` parts. `at_root` says that the path also answers without the dialect's prefix when the
    server speaks all dialects; `mark`, that it then does so for bodies of that mark only. `reply_type` is the type the
    OpenAPI document shows, None for no JSON. `documented` is False for what no document tells of: documents, and what
    is understood but refused as not supported.
    """

    method: str
    path: str
    summary: str
    at_root: bool = False
    mark: BodyMark | None = None
    documented: bool = True
    reply_type: type[Any] | None = None
    examples: tuple[Example, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecRoute(Route):
    """Runs every execution asked for, in parallel, and answers when all are over.

    `as_results` are the errors that this route's contract shows inside a result: they reach `render` in the place of
    the execution's result. Every other error answers the whole request, and so do those of `not_all` when nothing but
    such errors came of it.
    """

    parse: Callable[[RawRequest, Bounds], Ask]
    render: Callable[[Ask, Sequence[Answer], str], Reply]
    body_type: type[Any]
    method: str = "POST"
    as_results: tuple[type[SandforkError], ...] = ()
    not_all: tuple[type[SandforkError], ...] = (CapacityError,)


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryRoute(Route):
    """Answers from what the server knows of its languages, without running anything; needs a key where there are any.

    A body is read only when there is a `body_type`.
    """

    render: Callable[[RawRequest, Sequence[LanguageState]], Reply]
    method: str = "GET"
    body_type: type[Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageRoute(Route):
    """Tells one language, its version included, for which a program may have to be run.

    `select` finds it. *Raises* NoSuchLanguage.
    """

    select: Callable[[RawRequest, Sequence[LanguageState]], LanguageState]
    render: Callable[[LanguageState], Reply]
    method: str = "GET"


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthRoute(Route):
    """Tells the state of the templates; needs no key."""

    render: Callable[[ServiceHealth], Reply]
    method: str = "GET"


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsRoute(Route):
    """Tells the metrics in Prometheus' text format; needs no key."""

    method: str = "GET"


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentRoute(Route):
    """Gives the OpenAPI document of what is spoken where the route answers: of the dialect, at root of all."""

    method: str = "GET"
    documented: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PageRoute(Route):
    """Gives a page that shows the OpenAPI document at the path `document` beside it, and lets one try it."""

    document: str
    method: str = "GET"
    documented: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """One HTTP API flavour.

    `prefix` is where it answers on a server that speaks all dialects ("" for the one at root).
    `render_error(error, request_id)` makes the whole answer for an error; `error_type` is the type of its body.
    `refinements` are added to the JSON schemas of wire types, for what the types cannot say. `quotas` hold unless the
    server is configured otherwise; where there are any, every reply tells the caller's standing.
    """

    name: str
    title: str
    prefix: str
    routes: tuple[Route, ...]
    render_error: Callable[[SandforkError, str], Reply]
    error_type: type[Any]
    description: str = ""
    quotas: tuple[Quota, ...] = ()
    refinements: Mapping[type[Any], Mapping[str, Any]] = field(default_factory=dict)
    error_statuses: tuple[int, ...] = field(default=(400, 401, 403, 404, 405, 408, 413, 415, 429, 500, 501, 503))


STATUSES: tuple[tuple[type[SandforkError], int], ...] = (
    (Unauthenticated, 401),
    (RateLimited, 429),
    (Forbidden, 403),
    (SessionNotFound, 404),
    (FileNotInSandbox, 404),
    (PayloadTooLarge, 413),
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
    """Return the headers an error needs in every dialect: Retry-After, Allow, WWW-Authenticate."""
    headers: list[tuple[bytes, bytes]] = []
    if error.retry_after_s is not None:
        headers.append((b"retry-after", str(max(1, -int(-error.retry_after_s // 1))).encode()))
    elif isinstance(error, RateLimited | CapacityError):
        headers.append((b"retry-after", b"1"))
    if isinstance(error, MethodNotAllowed):
        headers.append((b"allow", ", ".join(error.allow).encode()))
    if isinstance(error, Unauthenticated):
        headers.append((b"www-authenticate", b"Bearer"))
    return tuple(headers)


def public_message(error: SandforkError) -> str:
    """Return what a caller may read of an error: the whole message of its own faults, less of ours."""
    if isinstance(error, CallerError | CapacityError) or status_of(error) in (401, 429):
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
