"""Run executions over a WebSocket: messages in, what happens out.

    listen ── Begin ──> execute ── what happens ──> outbox ── pump ──> client
       └──── Input ──> inputs ── feed ──> the program's stdin

Every part is bounded: what the program writes waits in the outbox and then in its pipe; what the client sends waits in
`inputs`, and then the connection is not read.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine
from typing import Any

from sandfork.dialects.actions import Begin, Input, Signal, Told
from sandfork.dialects.base import Ask, Dialect, Reply, SocketRoute
from sandfork.errors import InvalidRequest, SandforkError
from sandfork.http.draining import REASON, RESTARTING
from sandfork.http.endpoints import DialectEndpoint, Service
from sandfork.http.exchange import ClientGone, Exchange
from sandfork.http.intake import bounds_for, charge, identify
from sandfork.http.outbox import Outbox, Patience
from sandfork.http.streaming import Telling
from sandfork.http.websocket import BY_POLICY, TOO_LARGE, SocketExchange

INPUT_BYTES = 1 << 20
"""The most that waits for a program to read it."""


class Inputs:
    """What waits to be fed to a program."""

    def __init__(self) -> None:
        self._chunks: deque[bytes] = deque()
        self._size = 0
        self._arrived = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    async def put(self, data: bytes) -> None:
        """Add some, once there is room."""
        await self._room.wait()
        self._chunks.append(data)
        self._arrived.set()
        self._size += len(data)
        if self._size >= INPUT_BYTES:
            self._room.clear()

    async def take(self) -> bytes:
        """Return what came first."""
        while not self._chunks:
            self._arrived.clear()
            await self._arrived.wait()
        data = self._chunks.popleft()
        self._size -= len(data)
        if self._size < INPUT_BYTES:
            self._room.set()
        return data

    def clear(self) -> None:
        """Forget all of it."""
        self._chunks.clear()
        self._size = 0
        self._room.set()


class Conversation:
    """What is said over one connection, from its opening to its end."""

    def __init__(self, service: Service, dialect: Dialect, route: SocketRoute, exchange: SocketExchange) -> None:
        settings = self._settings = service.settings
        self._service = service
        self._route = route
        self._exchange = exchange
        self._quotas = settings.quotas_of(dialect)
        self._bounds = bounds_for(exchange.caller, settings.bounds)
        self._outbox = Outbox(settings.stream_buffer_bytes)
        self._patience = Patience(settings.stall_s, lambda: self._outbox.full or self._outbox.closed)
        self._inputs = Inputs()
        self._telling: Telling | None = None
        self._under_way = self._is_fed = False
        self._idle: asyncio.TimerHandle | None = None
        self._end = (1000, "")
        self._group = asyncio.TaskGroup()

    async def run(self) -> None:
        """Listen and tell until one side closes. *Raises* ClientGone at the end of every connection."""
        self._await_message()
        try:
            async with self._group:
                with self._service.drain.telling(self._leave):
                    await self._listen()
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            self._stop_waiting()

    async def _listen(self) -> None:
        self._spawn(self._pump())
        while True:
            await self._take(await self._exchange.hear())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return self._group.create_task(work)

    async def _take(self, message: str | bytes) -> None:
        if self._outbox.closed:
            return
        if len(message) > self._settings.max_body_bytes:
            self._close(TOO_LARGE, f"a message is larger than {self._settings.max_body_bytes} bytes")
            return
        if not self._under_way:
            self._await_message()
        try:
            await self._obey(self._route.receive(message, self._bounds))
        except SandforkError as error:
            self._service.metrics.rejected(error.code)
            self._outbox.put(self._route.refuse(error, self._exchange.request_id))
            if self._route.close_code is not None:
                self._close(self._route.close_code)

    async def _obey(self, told: Told) -> None:
        """Do what a message says; what is said to a program that is over comes too late, and is no error."""
        if isinstance(told, Begin):
            self._begin(told.ask)
        elif isinstance(told, Input | Signal):
            if self._telling is None:
                if self._route.early:
                    return
                raise InvalidRequest("", "nothing was started yet")
            if isinstance(told, Input) and self._under_way:
                await self._put(told.data)
            elif isinstance(told, Signal) and self._under_way:
                self._telling.signal(told.number)

    async def _put(self, data: bytes) -> None:
        if self._is_fed:
            await self._inputs.put(data)
        elif data:
            raise InvalidRequest("", "this program was given its standard input whole")

    def _begin(self, ask: Ask) -> None:
        if self._under_way:
            raise InvalidRequest("", "an execution is under way on this connection")
        if ask.writer is None:
            raise RuntimeError("an execution over a WebSocket needs a writer")
        charge(self._service, self._exchange.caller, 1 if ask.cost is None else ask.cost, self._quotas)
        self._stop_waiting()
        self._under_way, self._is_fed = True, ask.requests[0].keep_stdin
        self._telling = Telling(ask.writer, self._outbox, self._exchange.request_id)
        self._spawn(self._execute(ask, self._telling))

    async def _execute(self, ask: Ask, telling: Telling) -> None:
        feeding = self._spawn(self._feed(telling))
        try:
            await telling.execute(self._service.engine, ask.requests[0], self._exchange.caller)
        except Exception as error:
            telling.fail(error)
        finally:
            feeding.cancel()
            self._under_way = False
            self._inputs.clear()
        if self._route.single:
            self._close(1000)
        elif self._service.drain.begun:
            self._leave()
        else:
            self._await_message()

    async def _feed(self, telling: Telling) -> None:
        await telling.started.wait()
        assert telling.running is not None
        while True:
            await telling.running.feed(await self._inputs.take())

    async def _pump(self) -> None:
        while True:
            closed = self._outbox.closed
            for text in await self._outbox.take():
                for message in filter(None, text.split("\n")):
                    await self._patience.send(self._exchange.tell(message))
            if closed:
                await self._patience.send(self._exchange.close(*self._end))
                raise ClientGone

    def _close(self, code: int, reason: str = "") -> None:
        """End the connection once all was told."""
        if not self._outbox.closed:
            self._end = code, reason
            self._outbox.close()

    def _leave(self) -> None:
        """End the connection with the server, once nothing runs."""
        if not self._under_way:
            self._close(RESTARTING, REASON)

    def _await_message(self) -> None:
        """Give the client its time for the next message."""
        self._stop_waiting()
        idle_s = self._settings.socket_idle_s
        self._idle = asyncio.get_running_loop().call_later(
            idle_s, self._close, BY_POLICY, f"nothing ran and nothing was asked for {idle_s:g} s"
        )

    def _stop_waiting(self) -> None:
        if self._idle is not None:
            self._idle.cancel()


class SocketEndpoint(DialectEndpoint):
    """Takes WebSockets over which executions are run."""

    def __init__(self, service: Service, dialect: Dialect, route: SocketRoute) -> None:
        super().__init__(dialect)
        self._service = service
        self._of = dialect
        self._route = route

    async def answer(self, exchange: Exchange) -> Reply | None:
        """Identify, accept, converse. *Raises* AccessError and CrossOrigin before that, ClientGone at the end."""
        assert isinstance(exchange, SocketExchange)
        await identify(self._service, self._of, exchange, with_body=False)
        await exchange.accept()
        await Conversation(self._service, self._of, self._route, exchange).run()
        return None
