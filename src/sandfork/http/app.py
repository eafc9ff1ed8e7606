"""The ASGI application: body limit → id → identify → parse → charge → engine → render.

An error of ours is caught here, once, and rendered by the dialect whose route it was. POST /v1/exec is the path that
counts: it makes no task, no request or response objects, and looks its route up in one dictionary.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial

from sandfork.access import Access
from sandfork.dialects.base import (
    ActionRoute,
    Dialect,
    DocumentRoute,
    ExecRoute,
    HealthRoute,
    LanguageRoute,
    MetricsRoute,
    PageRoute,
    QueryRoute,
    Reply,
    Route,
    SocketRoute,
    TerminalRoute,
)
from sandfork.errors import SandforkError
from sandfork.http.actions import ActionEndpoint
from sandfork.http.dispatch import Claim, DispatchEndpoint
from sandfork.http.endpoints import (
    DocumentEndpoint,
    Endpoint,
    ExecEndpoint,
    HealthEndpoint,
    HttpSettings,
    MetricsEndpoint,
    NowhereEndpoint,
    Service,
    SocketOnlyEndpoint,
    WrongMethodEndpoint,
)
from sandfork.http.exchange import ClientGone, Exchange, Message, Receive, Send
from sandfork.http.forms import Room
from sandfork.http.languages import LanguageEndpoint, QueryEndpoint, find_versions, language_names
from sandfork.http.log import ExecutionLog, current
from sandfork.http.metered import MeteredEndpoint
from sandfork.http.openapi import Spoken, openapi_document
from sandfork.http.page import reference_page, try_it_page
from sandfork.http.ports import ExecutionEngine, RequestMetrics
from sandfork.http.routing import RouteTable, normalised
from sandfork.http.sockets import SocketEndpoint
from sandfork.http.terminals import TerminalEndpoint
from sandfork.http.websocket import SocketExchange

log = logging.getLogger(__name__)

ROOT_DIALECT = "native"
NOWHERE = NowhereEndpoint(None)


class App:
    """The ASGI application."""

    def __init__(self, service: Service, spoken: Sequence[Spoken], execution_log: ExecutionLog | None) -> None:
        self._service = service
        self._log = execution_log
        self._room = Room()
        self._spoken = spoken
        self._routes: RouteTable[Endpoint] = RouteTable()
        self._sockets: RouteTable[Endpoint] = RouteTable()
        self._dispatch: dict[tuple[str, str], DispatchEndpoint] = {}
        self._nowhere = {
            each.prefix: self._metered(each.dialect, NowhereEndpoint(each.dialect))
            for each in spoken
            if each.prefix or len(spoken) == 1
        }
        for each in spoken:
            for route in each.dialect.routes:
                self._add(each, route)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one connection's scope."""
        if scope["type"] == "http":
            await self._answer(Exchange(scope, receive, send))
        elif scope["type"] == "websocket":
            await receive()
            await self._answer(SocketExchange(scope, receive, send))
        elif scope["type"] == "lifespan":
            await _live(receive, send)

    def drain(self) -> None:
        """Close every WebSocket, as soon as nothing runs on it: HTTP answers under way are the server's to wait for."""
        self._service.drain.begin()

    async def find_versions(self, programs: Callable[[], int]) -> None:
        """Have languages tell their versions before anybody asks; `programs` tells how many programs have run."""
        await find_versions(self._service, programs)

    async def _answer(self, exchange: Exchange) -> None:
        current.set(exchange)
        if isinstance(exchange, SocketExchange):
            endpoint = self._find(exchange, self._sockets, "GET")
        else:
            method = exchange.scope["method"]
            endpoint = self._routes.exact(method, exchange.path) or self._find(exchange, self._routes, method)
        exchange.dialect = endpoint.dialect
        try:
            reply = await endpoint.answer(exchange)
        except ClientGone:
            return
        except SandforkError as error:
            reply = self._refuse(exchange, endpoint, error)
        except Exception:
            log.exception("request %s failed", exchange.request_id)
            reply = self._refuse(exchange, endpoint, SandforkError("internal error"))
        if reply is not None:
            await _reply(exchange, reply)

    def _find(self, exchange: Exchange, routes: RouteTable[Endpoint], method: str) -> Endpoint:
        found = routes.find(method, exchange.sent_path)
        if found.endpoint is not None:
            exchange.params = found.params
            return found.endpoint
        if found.beside is not None:
            return WrongMethodEndpoint(found.beside, found.allow)
        path = normalised(exchange.path)
        return next((words for prefix, words in self._nowhere.items() if path.startswith(f"{prefix}/")), NOWHERE)

    def _refuse(self, exchange: Exchange, endpoint: Endpoint, error: SandforkError) -> Reply:
        reply = endpoint.refuse(exchange, error)
        if not exchange.executed:
            self._service.metrics.rejected(error.code)
            if self._log is not None:
                self._log.refused(exchange, error, reply.status)
        return reply

    def _add(self, spoken: Spoken, route: Route) -> None:
        if isinstance(route, DocumentRoute | PageRoute):
            self._add_document(spoken, route)
            return
        dialect = spoken.dialect
        if isinstance(route, SocketRoute | TerminalRoute):
            self._add_socket(spoken, route)
            return
        endpoint = self._metered(dialect, self._endpoint(dialect, route))
        self._routes.add(route.method, spoken.prefix + route.path, endpoint)
        if not (route.at_root and spoken.prefix):
            return
        if route.mark is None:
            self._routes.add(route.method, route.path, endpoint)
            return
        place = route.method, route.path
        if place not in self._dispatch:
            self._dispatch[place] = DispatchEndpoint(self._service)
            self._routes.add(*place, self._dispatch[place])
        self._dispatch[place].add(Claim(dialect.title, route.mark, endpoint))

    def _add_socket(self, spoken: Spoken, route: SocketRoute | TerminalRoute) -> None:
        """Add an endpoint for WebSockets, and one that tells those who ask there by plain HTTP."""
        dialect, service = spoken.dialect, self._service
        if isinstance(route, SocketRoute):
            endpoint: Endpoint = SocketEndpoint(service, dialect, route)
        else:
            endpoint = TerminalEndpoint(service, dialect, route)
        for prefix in dict.fromkeys((spoken.prefix, "") if route.at_root else (spoken.prefix,)):
            self._sockets.add("GET", prefix + route.path, self._metered(dialect, endpoint))
            self._routes.add("GET", prefix + route.path, self._metered(dialect, SocketOnlyEndpoint(dialect)))

    def _endpoint(self, dialect: Dialect, route: Route) -> Endpoint:
        if isinstance(route, ExecRoute):
            return ExecEndpoint(self._service, dialect, route)
        if isinstance(route, ActionRoute):
            return ActionEndpoint(self._service, dialect, route, self._room)
        if isinstance(route, HealthRoute):
            return HealthEndpoint(self._service, dialect, route)
        if isinstance(route, MetricsRoute):
            return MetricsEndpoint(self._service, dialect)
        if isinstance(route, QueryRoute):
            return QueryEndpoint(self._service, dialect, route)
        if isinstance(route, LanguageRoute):
            return LanguageEndpoint(self._service, dialect, route)
        raise TypeError(f"nothing serves a {type(route).__name__}")

    def _metered(self, dialect: Dialect, endpoint: Endpoint) -> Endpoint:
        quotas = self._service.settings.quotas_of(dialect)
        return MeteredEndpoint(self._service, endpoint, quotas) if quotas else endpoint

    def _add_document(self, spoken: Spoken, route: DocumentRoute | PageRoute) -> None:
        """Add a document of a dialect; at root the same path tells of all that is spoken."""
        at_root = [Spoken(spoken.dialect, "")] if spoken.prefix and route.at_root else []
        for place in (spoken, *at_root):
            make = self._document_of(place)
            if isinstance(route, PageRoute):
                make = partial(reference_page, place.prefix + route.document)
            self._routes.add("GET", place.prefix + route.path, self._document(place, make))

    def _document(self, place: Spoken, make: Callable[[], Reply]) -> Endpoint:
        """Return the endpoint of a document: of its dialect where only that is spoken."""
        if place.prefix or len(self._spoken) == 1:
            return self._metered(place.dialect, DocumentEndpoint(make, place.dialect))
        return DocumentEndpoint(make)

    def _document_of(self, place: Spoken) -> Callable[[], Reply]:
        """Return what makes the document of a place: of its dialect under a prefix, else of everything."""
        settings = self._service.settings
        spoken, title = ((place,), place.dialect.title) if place.prefix else (self._spoken, "sandfork")
        return lambda: openapi_document(spoken, title, settings.version, language_names(settings.languages()))

    def add_own_documents(self) -> None:
        """Serve the documents that belong to no dialect."""
        for place in self._spoken:
            self._routes.add("GET", f"{place.prefix}/openapi.json", self._document(place, self._document_of(place)))
        if self._spoken[0].dialect.name == ROOT_DIALECT:
            self._routes.add("GET", "/docs", DocumentEndpoint(try_it_page))


async def _reply(exchange: Exchange, reply: Reply) -> None:
    """Send an answer, unless another has begun."""
    try:
        await (exchange.abandon() if exchange.begun else exchange.send(reply))
    except ClientGone:
        return


async def _live(receive: Receive, send: Send) -> None:
    """Answer the lifespan protocol: what there is to start and stop is the composition root's."""
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


def build_app(
    settings: HttpSettings,
    engine: ExecutionEngine,
    access: Access,
    metrics: RequestMetrics,
    dialects: Sequence[Dialect],
    execution_log: ExecutionLog | None = None,
    now: Callable[[], float] = time.time,
) -> App:
    """Return the application; `now` gives Unix time. *Raises* ValueError when `settings.dialect` is no dialect."""
    app = App(Service(settings, engine, access, metrics, now), _spoken(settings, dialects), execution_log)
    app.add_own_documents()
    return app


def _spoken(settings: HttpSettings, dialects: Sequence[Dialect]) -> tuple[Spoken, ...]:
    """Return the dialects to speak and where, the one at root first."""
    if settings.dialect is None:
        return tuple(Spoken(d, d.prefix) for d in sorted(dialects, key=lambda d: (d.prefix != "", d.name)))
    chosen = [dialect for dialect in dialects if dialect.name == settings.dialect]
    if not chosen:
        raise ValueError(f"there is no dialect {settings.dialect!r}: {', '.join(d.name for d in dialects)}")
    return (Spoken(chosen[0], ""),)
