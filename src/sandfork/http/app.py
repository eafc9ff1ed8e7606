"""The ASGI application: body limit → id → identify → parse → charge → engine → render.

An error of ours is caught here, once, and rendered by the dialect whose route it was. POST /v1/exec is the path that
counts: it makes no task, no request or response objects, and looks its route up in one dictionary.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial

from sandfork.access import Access
from sandfork.dialects.base import (
    Dialect,
    ExecRoute,
    HealthRoute,
    MetricsRoute,
    Reply,
    Route,
    render_undecided,
)
from sandfork.errors import SandforkError
from sandfork.http.endpoints import (
    DocumentEndpoint,
    Endpoint,
    ExecEndpoint,
    HealthEndpoint,
    HttpSettings,
    MetricsEndpoint,
    RefusingEndpoint,
    Service,
)
from sandfork.http.exchange import ClientGone, Exchange, Message, Receive, Send
from sandfork.http.log import ExecutionLog, current
from sandfork.http.openapi import Spoken, openapi_document
from sandfork.http.page import try_it_page
from sandfork.http.ports import ExecutionEngine, RequestMetrics
from sandfork.http.routing import RouteTable, normalised

log = logging.getLogger(__name__)

ROOT_DIALECT = "native"


class App:
    """The ASGI application."""

    def __init__(self, service: Service, spoken: Sequence[Spoken], execution_log: ExecutionLog | None) -> None:
        self._service = service
        self._log = execution_log
        self._routes: RouteTable[Endpoint] = RouteTable()
        self._spoken = sorted(spoken, key=lambda each: len(each.prefix), reverse=True)
        for each in spoken:
            for route in each.dialect.routes:
                self._add(each, route)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one connection's scope."""
        if scope["type"] == "http":
            await self._answer(Exchange(scope, receive, send))
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
        elif scope["type"] == "lifespan":
            await _live(receive, send)

    async def _answer(self, exchange: Exchange) -> None:
        current.set(exchange)
        endpoint = self._routes.exact(exchange.scope["method"], exchange.path) or self._find(exchange)
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
        await exchange.send(reply)

    def _find(self, exchange: Exchange) -> Endpoint:
        found = self._routes.find(exchange.scope["method"], exchange.path)
        if found.endpoint is not None:
            exchange.params = found.params
            return found.endpoint
        path = normalised(exchange.path)
        for each in self._spoken:
            if path.startswith(f"{each.prefix}/") and (each.prefix or found.allow or len(self._spoken) == 1):
                return RefusingEndpoint(each.dialect.name, each.dialect.render_error, found.allow)
        return RefusingEndpoint("", render_undecided, found.allow)

    def _refuse(self, exchange: Exchange, endpoint: Endpoint, error: SandforkError) -> Reply:
        reply = endpoint.render_error(error, exchange.request_id)
        if not exchange.executed:
            self._service.metrics.rejected(error.code)
            if self._log is not None:
                self._log.refused(exchange, error, reply.status)
        return reply

    def _add(self, spoken: Spoken, route: Route) -> None:
        endpoint = self._endpoint(spoken.dialect, route)
        self._routes.add(route.method, spoken.prefix + route.path, endpoint)
        if route.at_root and spoken.prefix:
            self._routes.add(route.method, route.path, endpoint)

    def _endpoint(self, dialect: Dialect, route: Route) -> Endpoint:
        if isinstance(route, ExecRoute):
            return ExecEndpoint(self._service, dialect, route)
        if isinstance(route, HealthRoute):
            return HealthEndpoint(self._service, dialect, route)
        if isinstance(route, MetricsRoute):
            return MetricsEndpoint(self._service, dialect)
        raise TypeError(f"nothing serves a {type(route).__name__}")

    def add_document(self, path: str, endpoint: DocumentEndpoint) -> None:
        """Serve a document at `path`."""
        self._routes.add("GET", path, endpoint)


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
) -> App:
    """Return the application. *Raises* ValueError when `settings.dialect` is none of `dialects`."""
    spoken = _spoken(settings, dialects)
    app = App(Service(settings, engine, access, metrics), spoken, execution_log)
    for each in spoken:
        if each.prefix:
            title, render_error = each.dialect.title, each.dialect.render_error
            document = partial(openapi_document, (each,), title, settings.version, settings.languages)
            app.add_document(f"{each.prefix}/openapi.json", DocumentEndpoint(document, render_error))
    document = partial(openapi_document, spoken, "sandfork", settings.version, settings.languages)
    app.add_document("/openapi.json", DocumentEndpoint(document))
    if spoken[0].dialect.name == ROOT_DIALECT:
        app.add_document("/docs", DocumentEndpoint(try_it_page))
    return app


def _spoken(settings: HttpSettings, dialects: Sequence[Dialect]) -> tuple[Spoken, ...]:
    """Return the dialects to speak and where, the one at root first."""
    if settings.dialect is None:
        return tuple(Spoken(d, d.prefix) for d in sorted(dialects, key=lambda d: (d.prefix != "", d.name)))
    chosen = [dialect for dialect in dialects if dialect.name == settings.dialect]
    if not chosen:
        raise ValueError(f"there is no dialect {settings.dialect!r}: {', '.join(d.name for d in dialects)}")
    return (Spoken(chosen[0], ""),)
