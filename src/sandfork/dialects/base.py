"""What a dialect is: routes, each a pure pair of parse and render, and the errors as its clients know them.

A dialect module defines one `DIALECT`. It translates wire fields to the types of `sandfork.model` and back and does
nothing else: no I/O, no clock, no engine. Adding a dialect is adding one file to this package.

    bytes ── parse(RawRequest, Bounds) ──> Ask ── the engine ──> ExecResult | SandforkError ── render ──> Reply

A route's class says what the server does between parse and render (`ExecRoute`: run what was asked; `ActionRoute`: a
session, a file, a terminal). A new kind of answer is a new route class here and its endpoint in `sandfork.http`; the
dialects that do not have it stay as they are.

At root a server of all dialects speaks our own, and every path of another that is unambiguous (`at_root`). Where
several have the same path, the body's own keys tell whose it is (`BodyMark`).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from sandfork.access_quotas import Quota
from sandfork.errors import CapacityError, SandforkError
from sandfork.model import (
    Display,
    ExecRequest,
    ExecResult,
    Limits,
    SessionSpec,
    Stream,
    TemplateHealth,
)

if TYPE_CHECKING:
    from sandfork.dialects.actions import Action, FileReply, Told

JSON = b"application/json"

LANGUAGE: dict[str, Any] = {"x-languages": True}
"""Extra schema of a field that names a language: documents list those the server offers."""
UNAVAILABLE: dict[str, Any] = {"x-unavailable": True}
"""Extra schema of a field that is understood but refused as not supported: documents leave it out.
Where only some values are, `{"x-only": [values]}` lists the others."""

Answer = ExecResult | SandforkError
"""What came of one execution: its result, or why we could not give one."""

NO_CEILINGS = Limits(math.inf, math.inf, *[sys.maxsize] * 5)


class Bounds(msgspec.Struct, frozen=True):
    """The server's maxima a dialect must know to parse.

    `max_wall_s` and `ceilings`, whose `wall_s` it is, are also the caller's own, where those are lower; dialects with
    defaults of their own need them. `session_disk_bytes` is what a session gets where none can ask for an amount.
    """

    max_wall_s: float = 300.0
    max_code_bytes: int = 1 << 20
    max_batch: int = 100
    ceilings: Limits = NO_CEILINGS
    session_disk_bytes: int = 256 << 20

    def lowered_to(self, limits: Limits) -> Bounds:
        """Return these bounds, nothing above `limits`."""
        mine = self.ceilings
        ceilings = Limits(*(min(getattr(mine, f), getattr(limits, f)) for f in Limits.__dataclass_fields__))
        return msgspec.structs.replace(self, max_wall_s=min(self.max_wall_s, limits.wall_s), ceilings=ceilings)


class FormFile(msgspec.Struct, frozen=True):
    """The file of a form: the field it came in, the name that the client gave it, its size."""

    field: str
    filename: str
    size_bytes: int


class RawRequest(msgspec.Struct, frozen=True):
    """A request as it came: header names are lower case; `params` are the path's; `query` is the raw string.

    `form` has the fields of a form, None where the body is none; a `file` in it is written by a WriteFile.
    `mint_id` makes an id nobody can guess, for what a request begins without naming it.
    """

    body: bytes = b""
    params: Mapping[str, str] = {}
    query: bytes = b""
    headers: Mapping[bytes, bytes] = {}
    form: Mapping[str, str] | None = None
    file: FormFile | None = None
    mint_id: Callable[[], str] = str


class Ask(msgspec.Struct, frozen=True):
    """What one request asks for: one execution or several.

    `echo` carries what the same route's render needs to know of the request; nobody else reads it. `cost` is what is
    charged, where that is not the number of executions. With a `writer` the one execution is answered as it goes. Where
    they go `in_turn`, they do not run in parallel.
    """

    requests: tuple[ExecRequest, ...]
    echo: Any = None
    cost: int | None = None
    writer: EventWriter | None = None
    in_turn: InTurn | None = None


class InTurn(msgspec.Struct, frozen=True):
    """Executions that share a session, made for them and ended after them, and run in it one after another.

    After an answer of which `go_on` is false the others are `NotRun`.
    """

    spec: SessionSpec
    go_on: Callable[[Answer], bool]


class EventWriter(Protocol):
    """Writes what happens to one execution in a dialect's words, as server-sent events or messages of a WebSocket.

    One writer is for one execution, for it remembers: a character may come in two chunks. Each method returns what to
    send now, "" for nothing; each line of it is a message of a WebSocket. Exactly one of `finished` and `failed` comes
    last.
    """

    def started(self, exec_id: str) -> str:
        """The execution was taken in; it may still wait for its turn."""
        ...

    def output(self, stream: Stream, data: bytes) -> str:
        """The program wrote."""
        ...

    def display(self, shown: Display) -> str:
        """The program showed a rich value."""
        ...

    def finished(self, result: ExecResult) -> str:
        """The program is over; `result` has no output, it was all told before."""
        ...

    def failed(self, error: SandforkError, request_id: str) -> str:
        """No outcome can be given."""
        ...


class Reply(msgspec.Struct, frozen=True):
    """A whole HTTP answer but for the content length."""

    body: bytes
    status: int = 200
    content_type: bytes = JSON
    headers: tuple[tuple[bytes, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class ServiceHealth:
    """What a health document may tell.

    `unenforced` names limits it cannot enforce, `ok_word` is the status word when all is well, `now_s` Unix time.
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
    """A language as this server has it. In `run` and `compile` `{file}` is the program's text; `image` is NAME@DIGEST.
    `version_argv` tells the version, in the template `commands`."""

    name: str
    aliases: tuple[str, ...]
    extension: str
    run: tuple[str, ...]
    template: str
    runnable: bool
    version: str | None = None
    compile: tuple[str, ...] = ()
    version_argv: tuple[str, ...] = ()
    image: str = ""
    image_bytes: int = 0
    commands: str = "command"


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
    such errors came of it. `event_type` is what documents tell of the events of a streamed answer, where there may be
    one; without a `reply_type` there is no other.
    """

    parse: Callable[[RawRequest, Bounds], Ask]
    render: Callable[[Ask, Sequence[Answer], str], Reply]
    body_type: type[Any]
    method: str = "POST"
    event_type: Any = None
    as_results: tuple[type[SandforkError], ...] = ()
    not_all: tuple[type[SandforkError], ...] = (CapacityError,)


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionRoute(Route):
    """Has the engine do something and answers with what it came to.

    `space` of what is done is the dialect's name, the owner the caller. `body_type` is the type of a JSON body; None
    reads none. With `upload`, the largest body is that of uploads. A body that is neither JSON nor a form is not read
    before the action is known: a `WriteFile` writes it as it arrives. With `form` the body is a form, urlencoded or
    multipart, with at most one file; where there is a `body_type` too, it is either. `lifted` names a field of the
    JSON's top level whose text is a file as base64: it is taken out as it arrives, `parse` finds "" there, a
    `WriteFile` writes it, and the body may be as much longer as base64 is. `cost` is what is charged.
    The rest is for documents: `form_type` tells the fields of a form, `status` is that of a good answer,
    `reply_content` its content type where it is no JSON, `query` what the query may hold.
    """

    parse: Callable[[RawRequest, Bounds], Action]
    render: Callable[[Action, Any, str], Reply | FileReply]
    body_type: type[Any] | None = None
    upload: bool = False
    form: bool = False
    form_type: type[Any] | None = None
    lifted: str | None = None
    cost: int = 0
    status: int = 200
    reply_content: str = "text/plain"
    query: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketRoute(Route):
    """Runs executions over a WebSocket, one at a time: messages in, the text of the writer's events out.

    `receive(message, bounds)` reads a text or binary message. *Raises* CallerError, which `refuse` turns into text;
    `close_code` is the code to close with after that, None to go on. `single` closes with 1000 after one execution.
    What is fed or signalled before anything was started is refused, unless it may come `early`: then it is passed over.
    Documents tell of `message_type` and `event_type`, what a text message holds in either direction.
    """

    receive: Callable[[str | bytes, Bounds], Told]
    refuse: Callable[[SandforkError, str], str]
    method: str = "GET"
    close_code: int | None = None
    single: bool = False
    early: bool = False
    message_type: Any = None
    event_type: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TerminalRoute(Route):
    """Connects a WebSocket to a terminal: what it shows goes out as binary messages.

    `select(raw)` gives the names of the session and the terminal; `receive(message)` reads what the client sends;
    `exited(exit_code)` is the text that is sent when the command is over, before the connection is closed. Documents
    tell of `message_type` and `event_type`, what a text message holds in either direction.
    """

    select: Callable[[RawRequest], tuple[str, str]]
    receive: Callable[[str | bytes], Told]
    exited: Callable[[int | None], str]
    method: str = "GET"
    message_type: Any = None
    event_type: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryRoute(Route):
    """Answers from what the server knows of its languages, their `versions` if wanted; needs a key where there are any.

    A body is read only when there is a `body_type`.
    """

    render: Callable[[RawRequest, Sequence[LanguageState]], Reply]
    method: str = "GET"
    body_type: type[Any] | None = None
    versions: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageRoute(Route):
    """Tells the language that `select` finds, with its version, for which a program may have to be run."""

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
    server is configured otherwise; where there are any, every reply tells the caller's standing. `key_in_request` finds
    an API key elsewhere than in a header, where this dialect's clients put one.
    """

    name: str
    title: str
    prefix: str
    routes: tuple[Route, ...]
    render_error: Callable[[SandforkError, str], Reply]
    error_type: type[Any]
    description: str = ""
    quotas: tuple[Quota, ...] = ()
    key_in_request: Callable[[RawRequest], bytes | None] | None = None
    refinements: Mapping[type[Any], Mapping[str, Any]] = field(default_factory=dict)
    error_statuses: tuple[int, ...] = field(default=(400, 401, 403, 404, 405, 408, 409, 413, 415, 429, 500, 501, 503))
