"""What the server does for each kind of route: take a request in, have it done, give the dialect what to render."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from sandfork.access import Access
from sandfork.access_quotas import Quota
from sandfork.dialects.base import (
    Answer,
    Ask,
    Bounds,
    Dialect,
    ExecRoute,
    HealthRoute,
    InTurn,
    LanguageState,
    Reply,
    ServiceHealth,
)
from sandfork.dialects.refusals import MethodNotAllowed, NoSuchPath, NotRun, UpgradeRequired, render_undecided
from sandfork.errors import SandforkError, SessionNotFound
from sandfork.http.draining import Drain
from sandfork.http.exchange import Exchange
from sandfork.http.intake import bounds_for, charge, identify
from sandfork.http.ports import ExecutionEngine, RequestMetrics
from sandfork.http.streaming import EventStream
from sandfork.metrics import CONTENT_TYPE
from sandfork.model import Caller, ExecRequest, SessionKey, SessionUse


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """Settings of the HTTP side.

    `dialect` None serves every dialect under its prefix and our own at root; a name serves that one only, at root.
    `isolation` and `unenforced_limits` are told in health documents; `health_word` is the status when all is well.
    `batch_parallel` is how many items of one batch are under way at once. A client is watched for going away once its
    program has run for `watch_after_s`. `languages` returns the catalogue. `allowed_origins` are web origins whose
    pages may run programs in open mode. `quotas` are those of a dialect, by its name, in the place of its own.
    Uploads come in within `upload_s`. Of a streamed answer at most `stream_buffer_bytes` wait for their client, who is
    given up after `stall_s` in which it took nothing; after `ping_s` without anything to tell it gets a sign of life.
    A WebSocket on which nothing runs is closed after `socket_idle_s` without a message.
    """

    dialect: str | None = None
    bounds: Bounds = field(default_factory=Bounds)
    max_body_bytes: int = 10 << 20
    max_upload_bytes: int = 256 << 20
    body_timeout_s: float = 30.0
    upload_s: float = 900.0
    stream_buffer_bytes: int = 256 << 10
    stall_s: float = 30.0
    ping_s: float = 15.0
    socket_idle_s: float = 60.0
    batch_parallel: int = 16
    watch_after_s: float = 0.005
    version: str = ""
    isolation: str = ""
    unenforced_limits: tuple[str, ...] = ()
    health_word: str = "ok"
    languages: Callable[[], tuple[LanguageState, ...]] = tuple
    allowed_origins: tuple[str, ...] = ()
    quotas: Mapping[str, tuple[Quota, ...]] = field(default_factory=dict)

    def quotas_of(self, dialect: Dialect) -> tuple[Quota, ...]:
        """Return the quotas that hold for callers of a dialect."""
        return self.quotas.get(dialect.name, dialect.quotas)


@dataclass(slots=True)
class Versions:
    """What languages told so far, by name and image, None where that was nothing; and what asks them at the start.

    They are `wanted` once a client has asked for a list.
    """

    told: dict[tuple[str, str], str | None] = field(default_factory=dict)
    finding: asyncio.Task[None] | None = None
    wanted: bool = False

    @property
    def are_sought(self) -> bool:
        """Whether they are being asked since the start."""
        return self.finding is not None and not self.finding.done()


@dataclass(frozen=True, slots=True)
class Service:
    """What endpoints work with; `now` gives Unix time in seconds."""

    settings: HttpSettings
    engine: ExecutionEngine
    access: Access
    metrics: RequestMetrics
    now: Callable[[], float] = time.time
    versions: Versions = field(default_factory=Versions)
    drain: Drain = field(default_factory=Drain)


class Endpoint(Protocol):
    """Answers the requests of one route."""

    @property
    def dialect(self) -> str:
        """The name of the dialect the route belongs to, "" for none."""
        ...

    async def answer(self, exchange: Exchange) -> Reply | None:
        """Return the answer, None when it was sent on the way. *Raises* SandforkError, ClientGone."""
        ...

    def refuse(self, exchange: Exchange, error: SandforkError) -> Reply:
        """Return the answer to a request that ended in an error."""
        ...


class DialectEndpoint:
    """What the endpoints of a dialect have: its name and its words for errors. None is for those of no dialect."""

    def __init__(self, dialect: Dialect | None) -> None:
        self.dialect = dialect.name if dialect else ""
        self._render_error = dialect.render_error if dialect else render_undecided

    def refuse(self, exchange: Exchange, error: SandforkError) -> Reply:
        """Render the error."""
        return self._render_error(error, exchange.request_id)


class ExecEndpoint(DialectEndpoint):
    """Runs what was asked for and answers when all of it is over."""

    def __init__(self, service: Service, dialect: Dialect, route: ExecRoute) -> None:
        super().__init__(dialect)
        self._service = service
        self._settings = service.settings
        self._of = dialect
        self._route = route
        self._quotas = service.settings.quotas_of(dialect)

    async def answer(self, exchange: Exchange) -> Reply | None:
        """Body limit, identify, read, parse, charge, run, render; or tell what happens while it runs."""
        service, settings, route = self._service, self._settings, self._route
        exchange.check_length(settings.max_body_bytes)
        exchange.check_json()
        caller = await identify(service, self._of, exchange, with_body=True)
        await exchange.read_body(settings.max_body_bytes, settings.body_timeout_s)
        ask = route.parse(exchange.raw, bounds_for(caller, settings.bounds))
        charge(service, caller, len(ask.requests) if ask.cost is None else ask.cost, self._quotas)
        exchange.executed = True
        if ask.writer is not None:
            stream = EventStream(settings, service.engine, exchange, ask.writer)
            await exchange.while_connected(stream.run(ask.requests[0], caller), settings.watch_after_s)
            return None
        answers = await exchange.while_connected(self._run(ask, caller), settings.watch_after_s)
        failed = any(isinstance(answer, SandforkError) for answer in answers)
        return route.render(ask, answers, exchange.request_id if failed else "")

    async def _run(self, ask: Ask, caller: Caller) -> Sequence[Answer]:
        if ask.in_turn is not None:
            answers = await self._run_in_turn(ask.requests, ask.in_turn, caller)
        elif len(ask.requests) == 1:
            try:
                return (await self._service.engine.execute(ask.requests[0], caller),)
            except self._route.as_results as error:
                answers = [error]
        else:
            answers = await self._run_all(ask.requests, caller)
        if answers and all(isinstance(answer, (NotRun, *self._route.not_all)) for answer in answers):
            raise answers[0]  # type: ignore[misc]  # the line above says that it is an exception
        return answers

    async def _run_in_turn(self, requests: Sequence[ExecRequest], in_turn: InTurn, caller: Caller) -> list[Answer]:
        """Run one after another in a session of their own, until one of them says that the rest do not run."""
        if not requests:
            return []
        sessions, name = self._service.engine.sessions, secrets.token_hex(16)
        key, use = SessionKey(self.dialect, caller.key_id, name), SessionUse(self.dialect, name, fresh=True)
        answers: list[Answer] = []
        await sessions.create(key, caller, in_turn.spec)
        try:
            for request in requests:
                try:
                    answer: Answer = await self._service.engine.execute(replace(request, session=use), caller)
                except self._route.as_results as error:
                    answer = error
                answers.append(answer)
                if not in_turn.go_on(answer):
                    break
        finally:
            with contextlib.suppress(SessionNotFound):
                await asyncio.shield(sessions.delete(key))
        left = len(requests) - len(answers)
        return answers + [NotRun("an earlier one of this request did not succeed") for _ in range(left)]

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


class HealthEndpoint(DialectEndpoint):
    """Tells the state of the service to anybody."""

    def __init__(self, service: Service, dialect: Dialect, route: HealthRoute) -> None:
        super().__init__(dialect)
        self._service = service
        self._route = route

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
                now_s=self._service.now(),
            )
        )


class MetricsEndpoint(DialectEndpoint):
    """Tells the metrics to anybody."""

    def __init__(self, service: Service, dialect: Dialect) -> None:
        super().__init__(dialect)
        self._metrics = service.metrics

    async def answer(self, exchange: Exchange) -> Reply:
        """Write them out."""
        return Reply(self._metrics.exposition(), content_type=CONTENT_TYPE)


class DocumentEndpoint(DialectEndpoint):
    """Gives a document that is made when first asked for."""

    def __init__(self, make: Callable[[], Reply], dialect: Dialect | None = None) -> None:
        super().__init__(dialect)
        self._make = make
        self._reply: Reply | None = None

    async def answer(self, exchange: Exchange) -> Reply:
        """Make it once."""
        if self._reply is None:
            self._reply = self._make()
        return self._reply


class NowhereEndpoint(DialectEndpoint):
    """Answers where nothing else does."""

    async def answer(self, exchange: Exchange) -> Reply:
        """*Raises* NoSuchPath."""
        raise NoSuchPath(f"nothing answers at {exchange.path[:200]}")


class SocketOnlyEndpoint(DialectEndpoint):
    """Answers plain requests where there are only WebSockets."""

    async def answer(self, exchange: Exchange) -> Reply:
        """*Raises* UpgradeRequired."""
        raise UpgradeRequired("there is a WebSocket here, and nothing else")


class WrongMethodEndpoint:
    """Answers at a path of another endpoint, in its words, the methods that it does not take."""

    def __init__(self, beside: Endpoint, allow: tuple[str, ...]) -> None:
        self._allow = allow
        self.dialect = beside.dialect
        self.refuse = beside.refuse

    async def answer(self, exchange: Exchange) -> Reply:
        """*Raises* MethodNotAllowed."""
        raise MethodNotAllowed(exchange.scope["method"], self._allow)
