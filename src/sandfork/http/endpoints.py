"""What the server does for each kind of route: take a request in, have it done, give the dialect what to render."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Protocol
from urllib.parse import urlsplit

import msgspec

from sandfork.access import Access
from sandfork.dialects.base import (
    Answer,
    Ask,
    Bounds,
    CrossOrigin,
    Dialect,
    ExecRoute,
    HealthRoute,
    MethodNotAllowed,
    NoSuchPath,
    RawRequest,
    Reply,
    ServiceHealth,
    render_undecided,
)
from sandfork.errors import CapacityError, SandforkError
from sandfork.http.exchange import Exchange
from sandfork.http.ports import ExecutionEngine, RequestMetrics
from sandfork.metrics import CONTENT_TYPE
from sandfork.model import Caller, ExecRequest

RenderError = Callable[[SandforkError, str], Reply]


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """Settings of the HTTP side.

    `dialect` None serves every dialect under its prefix and our own at root; a name serves that one only, at root.
    `isolation` and `unenforced_limits` are told in health documents; `health_word` is the status when all is well.
    `batch_parallel` is how many items of one batch are under way at once. A client is watched for going away once its
    program has run for `watch_after_s`. `languages` are the names and aliases to list in documents. `allowed_origins`
    are web origins whose pages may run programs in open mode.
    """

    dialect: str | None = None
    bounds: Bounds = field(default_factory=Bounds)
    max_body_bytes: int = 10 << 20
    body_timeout_s: float = 30.0
    batch_parallel: int = 16
    watch_after_s: float = 0.005
    version: str = ""
    isolation: str = ""
    unenforced_limits: tuple[str, ...] = ()
    health_word: str = "ok"
    languages: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Service:
    """What endpoints work with."""

    settings: HttpSettings
    engine: ExecutionEngine
    access: Access
    metrics: RequestMetrics


class Endpoint(Protocol):
    """Answers the requests of one route."""

    @property
    def dialect(self) -> str:
        """The name of the dialect the route belongs to, "" for none."""
        ...

    @property
    def render_error(self) -> RenderError:
        """How an error of such a request is answered."""
        ...

    async def answer(self, exchange: Exchange) -> Reply:
        """Return the answer. *Raises* SandforkError, ClientGone."""
        ...


class ExecEndpoint:
    """Runs what was asked for and answers when all of it is over."""

    def __init__(self, service: Service, dialect: Dialect, route: ExecRoute) -> None:
        self._service = service
        self._settings = service.settings
        self._route = route
        self.dialect = dialect.name
        self.render_error: RenderError = dialect.render_error

    async def answer(self, exchange: Exchange) -> Reply:
        """Body limit, identify, read, parse, charge, run, render."""
        service, settings, route = self._service, self._settings, self._route
        headers = exchange.headers
        exchange.check_length(settings.max_body_bytes)
        exchange.check_json()
        caller = exchange.caller = service.access.identify(headers, exchange.peer)
        if service.access.open_mode and b"origin" in headers:
            check_origin(headers, settings.allowed_origins)
        body = await exchange.read_body(settings.max_body_bytes, settings.body_timeout_s)
        raw = RawRequest(body, exchange.params, exchange.scope.get("query_string", b""), headers)
        ask = route.parse(raw, bounds_for(caller, settings.bounds))
        service.access.charge(caller, len(ask.requests))
        exchange.executed = True
        answers = await exchange.while_connected(self._run(ask, caller), settings.watch_after_s)
        failed = any(isinstance(answer, SandforkError) for answer in answers)
        return route.render(ask, answers, exchange.request_id if failed else "")

    async def _run(self, ask: Ask, caller: Caller) -> Sequence[Answer]:
        if len(ask.requests) == 1:
            try:
                return (await self._service.engine.execute(ask.requests[0], caller),)
            except self._route.as_results as error:
                answers: list[Answer] = [error]
        else:
            answers = await self._run_all(ask.requests, caller)
        if answers and all(isinstance(answer, CapacityError) for answer in answers):
            raise answers[0]  # type: ignore[misc]  # the line above says that it is an exception
        return answers

    async def _run_all(self, requests: Sequence[ExecRequest], caller: Caller) -> list[Answer]:
        """Run all, a bounded number at a time. An error that is no item of the reply stops the rest."""
        answers: dict[int, Answer] = {}
        waiting = iter(enumerate(requests))

        async def work() -> None:
            for index, request in waiting:
                try:
                    answers[index] = await self._service.engine.execute(request, caller)
                except self._route.as_results as error:
                    answers[index] = error

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(len(requests), self._settings.batch_parallel)):
                    group.create_task(work())
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [answers[index] for index in range(len(requests))]


class HealthEndpoint:
    """Tells the state of the service to anybody."""

    def __init__(self, service: Service, dialect: Dialect, route: HealthRoute) -> None:
        self._service = service
        self._route = route
        self.dialect = dialect.name
        self.render_error: RenderError = dialect.render_error

    async def answer(self, exchange: Exchange) -> Reply:
        """Ask the engine and render."""
        settings = self._service.settings
        return self._route.render(
            ServiceHealth(
                templates=self._service.engine.health(),
                version=settings.version,
                isolation=settings.isolation,
                unenforced=settings.unenforced_limits,
                ok_word=settings.health_word,
            )
        )


class MetricsEndpoint:
    """Tells the metrics to anybody."""

    def __init__(self, service: Service, dialect: Dialect) -> None:
        self._metrics = service.metrics
        self.dialect = dialect.name
        self.render_error: RenderError = dialect.render_error

    async def answer(self, exchange: Exchange) -> Reply:
        """Write them out."""
        return Reply(self._metrics.exposition(), content_type=CONTENT_TYPE)


class DocumentEndpoint:
    """Gives a document that is made when first asked for."""

    def __init__(self, make: Callable[[], Reply], render_error: RenderError = render_undecided) -> None:
        self._make = make
        self._reply: Reply | None = None
        self.dialect = ""
        self.render_error = render_error

    async def answer(self, exchange: Exchange) -> Reply:
        """Make it once."""
        if self._reply is None:
            self._reply = self._make()
        return self._reply


class RefusingEndpoint:
    """Answers what nothing else does: no such path, or another method."""

    def __init__(self, dialect: str, render_error: RenderError, allow: tuple[str, ...] = ()) -> None:
        self._allow = allow
        self.dialect = dialect
        self.render_error = render_error

    async def answer(self, exchange: Exchange) -> Reply:
        """*Raises* MethodNotAllowed or NoSuchPath."""
        if self._allow:
            raise MethodNotAllowed(exchange.scope["method"], self._allow)
        raise NoSuchPath(f"nothing answers at {exchange.path[:200]}")


def bounds_for(caller: Caller, bounds: Bounds) -> Bounds:
    """Return the server's bounds, lowered to those of the caller's key."""
    ceilings = caller.max_limits
    if ceilings is None or ceilings.wall_s >= bounds.max_wall_s:
        return bounds
    return msgspec.structs.replace(bounds, max_wall_s=ceilings.wall_s)


def check_origin(headers: dict[bytes, bytes], allowed: Sequence[str]) -> None:
    """Keep the pages of other sites from running programs on a server that asks for no key.

    A browser names the origin of every POST a page makes. A page of this server reached by an address or as
    `localhost` is let through; one reached by a name is not, as anybody's name can be made to point here (DNS
    rebinding), unless it is in `allowed`. *Raises* CrossOrigin.
    """
    origin = headers[b"origin"].decode("latin-1")
    if origin in allowed:
        return
    if not _is_own_page(origin, headers.get(b"host", b"").decode("latin-1")):
        raise CrossOrigin("web pages of other origins may not run programs on a server without keys")


def _is_own_page(origin: str, host: str) -> bool:
    try:
        parts = urlsplit(origin)
        return parts.netloc == host and _is_address(parts.hostname or "")
    except ValueError:
        return False


def _is_address(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
