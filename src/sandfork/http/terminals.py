"""Connect a WebSocket to a terminal of a session."""

from __future__ import annotations

import asyncio

from sandfork.dialects.actions import Input, Resize
from sandfork.dialects.base import Dialect, Reply, TerminalRoute
from sandfork.dialects.refusals import public_message
from sandfork.errors import SandforkError, SessionNotFound
from sandfork.http.draining import REASON, RESTARTING, Drain
from sandfork.http.endpoints import DialectEndpoint, Service
from sandfork.http.exchange import ClientGone, Exchange
from sandfork.http.intake import identify
from sandfork.http.outbox import Patience
from sandfork.http.ports import Connection, Sessions
from sandfork.http.websocket import BY_POLICY, TOO_LARGE, UNREADABLE, SocketExchange
from sandfork.model import SessionKey

PIECE_BYTES = 4096
"""How much is typed at once."""


class TerminalEndpoint(DialectEndpoint):
    """Takes WebSockets that follow a terminal and type into it. The terminal stays when its client goes."""

    def __init__(self, service: Service, dialect: Dialect, route: TerminalRoute) -> None:
        super().__init__(dialect)
        self._service = service
        self._of = dialect
        self._route = route

    async def answer(self, exchange: Exchange) -> Reply | None:
        """Identify, find, accept, connect. *Raises* SandforkError before it is accepted, ClientGone at the end."""
        assert isinstance(exchange, SocketExchange)
        service = self._service
        caller = await identify(service, self._of, exchange, with_body=False)
        session, name = self._route.select(exchange.raw)
        link = _Link(service, self._route, exchange, SessionKey(self.dialect, caller.key_id, session), name)
        await link.run()
        return None


class _Link:
    """One client at one terminal."""

    def __init__(
        self, service: Service, route: TerminalRoute, exchange: SocketExchange, key: SessionKey, name: str
    ) -> None:
        self._max_bytes = service.settings.max_body_bytes
        self._sessions: Sessions = service.engine.sessions
        self._route = route
        self._exchange = exchange
        self._key, self._name = key, name
        self._drain: Drain = service.drain
        self._stall_s = service.settings.stall_s
        self._patience = Patience(self._stall_s, lambda: True)

    async def run(self) -> None:
        connection = self._sessions.connect(self._key, self._name)
        try:
            await self._exchange.accept()
            async with asyncio.TaskGroup() as group:
                group.create_task(self._show(connection))
                with self._drain.telling(lambda: group.create_task(self._leave())):
                    while True:
                        await self._take(connection, await self._exchange.hear())
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            connection.close()

    async def _show(self, connection: Connection) -> None:
        while data := await connection.read():
            await self._patience.send(self._exchange.tell(data))
        if self._is_over(connection):
            await self._patience.send(self._exchange.tell(self._route.exited(connection.exit_code)))
            await self._close(1000, "")
        await self._close(1000, "another client took its place")

    def _is_over(self, connection: Connection) -> bool:
        """Whether the command is over, and it is not that another client took the place of this one."""
        if connection.exit_code is not None:
            return True
        try:
            self._sessions.terminal(self._key, self._name)
        except SessionNotFound:
            return True
        return False

    async def _take(self, connection: Connection, message: str | bytes) -> None:
        if len(message) > self._max_bytes:
            await self._close(TOO_LARGE, f"a message is larger than {self._max_bytes} bytes")
        try:
            told = self._route.receive(message)
            if isinstance(told, Input) and told.data:
                await self._type(connection, told.data)
            elif isinstance(told, Resize):
                self._sessions.resize_terminal(self._key, self._name, told.cols, told.rows)
        except SessionNotFound:
            return
        except SandforkError as error:
            await self._close(UNREADABLE, public_message(error))

    async def _type(self, connection: Connection, data: bytes) -> None:
        """Type at the terminal's pace. While it takes nothing the client is not heard, nor seen to go: not for ever."""
        try:
            for start in range(0, len(data), PIECE_BYTES):
                async with asyncio.timeout(self._stall_s):
                    await connection.write(data[start : start + PIECE_BYTES])
        except TimeoutError:
            await self._close(BY_POLICY, f"the terminal took nothing of what was typed for {self._stall_s:g} s")

    async def _leave(self) -> None:
        """End the connection with the server, whatever is on its way."""
        await Patience(self._stall_s, lambda: True).send(self._exchange.close(RESTARTING, REASON))
        raise ClientGone

    async def _close(self, code: int, reason: str) -> None:
        """End the connection. *Raises* ClientGone."""
        await self._patience.send(self._exchange.close(code, reason))
        raise ClientGone
