"""The HTTP server: uvicorn with bounds on what a connection may cost before it has asked anything.

uvicorn bounds neither the size of a request's head nor the time a client takes to send it. Here a head larger than
`MAX_HEAD_BYTES`, or one not complete `HEAD_S` after the connection or the last answer, ends the connection. Nor does it
bound how long a connection that is being closed waits for its client to take what was sent: here that is `CLOSING_S`.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

MAX_HEAD_BYTES = 64 << 10
HEAD_S = 30.0
KEEP_ALIVE_S = 75
CLOSING_S = 10.0
GOODBYE_S = 1.0
"""How long the client of a WebSocket may take to answer that it is closed, once the server is about to end."""
PING_S = 20.0
"""How often the client of a WebSocket is asked whether it is there, and how long it may take to answer."""
LOOKED_AT = 64
"""How many connections are looked at for one to close, when there are too many."""
SWEEP_TICKS = 50
"""Slow connections are looked for every so many ticks of uvicorn, which come ten a second."""

HEAD_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-type: application/json\r\n"
    b'content-length: 40\r\n\r\n{"error":"request header is too large."}'
)


class Closing:
    """Since when a connection is being closed."""

    closing_since = 0.0

    def abort_if_stuck(self, transport: asyncio.Transport, now: float) -> None:
        """Break a connection whose client does not take the rest of what was sent."""
        if not transport.is_closing():
            return
        self.closing_since = self.closing_since or now
        if now - self.closing_since > CLOSING_S:
            transport.abort()


class HeadWithBody:
    """A transport that keeps the head of an answer until its body comes, for one system call instead of two.

    A body that does not follow at once, as of an answer that is told bit by bit, has its head sent without it.
    """

    __slots__ = ("_head", "_later", "_loop", "_transport")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._head = b""
        self._later: asyncio.Handle | None = None

    def __getattr__(self, name: str) -> Any:
        """Be that transport in all else."""
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send it, now or in a moment."""
        if self._later is not None:
            self._later.cancel()
            self._later = None
            data, self._head = self._head + data, b""
        elif data.startswith(b"HTTP/1."):
            self._head = data
            self._later = self._loop.call_soon(self._send_head)
            return
        self._transport.write(data)

    def _send_head(self) -> None:
        self._later = None
        head, self._head = self._head, b""
        self._transport.write(head)

    def close(self) -> None:
        """Close it when all is sent."""
        if self._later is not None:
            self._later.cancel()
            self._send_head()
        self._transport.close()


class BoundedProtocol(Closing, HttpToolsProtocol):
    """uvicorn's protocol, which gives up on heads that are too large or too slow, and on clients that do not read."""

    head_bytes = 0
    in_head = False
    waiting_since = 0.0
    most_connections = 1 << 20

    def connection_made(self, transport: Any) -> None:
        """Start waiting for the first head; where there are too many connections, one that asks nothing gives way."""
        super().connection_made(cast(asyncio.Transport, HeadWithBody(transport)))
        self.waiting_since = time.monotonic()
        if len(self.connections) > self.most_connections:
            some = (c for c in islice(self.connections, LOOKED_AT) if isinstance(c, BoundedProtocol) and c is not self)
            next((each for each in some if each.is_idle), self).transport.close()

    @property
    def is_idle(self) -> bool:
        """Whether no request of the connection is under way."""
        cycle: Any = self.cycle  # None at first, whatever its declaration says
        return cycle is None or bool(cycle.response_complete)

    def data_received(self, data: bytes) -> None:
        """Parse; count what belongs to a head that began in an earlier chunk and has not ended yet."""
        was_in_head = self.in_head
        super().data_received(data)
        # A head that begins in this chunk is not counted yet: the chunk may hold the end of a body before it.
        if self.in_head and was_in_head:
            self.head_bytes += len(data)
            if self.head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
                self.transport.write(HEAD_TOO_LARGE)
                self.transport.close()

    def on_message_begin(self) -> None:
        """Note that a head has begun."""
        super().on_message_begin()
        self.in_head, self.head_bytes = True, 0
        self.waiting_since = time.monotonic()

    def on_headers_complete(self) -> None:
        """Note that a head has ended."""
        self.in_head = False
        self.waiting_since = 0.0
        super().on_headers_complete()

    def close_if_slow(self, now: float) -> None:
        """Close the connection when its client has been sending one head, or nothing at all, for `HEAD_S`."""
        if self.waiting_since and now - self.waiting_since > HEAD_S:
            self.transport.close()
        self.abort_if_stuck(self.transport, now)


class BoundedSocket(Closing, WebSocketsSansIOProtocol):
    """uvicorn's protocol for WebSockets, which gives up on clients that do not read, not on those that it does not."""

    def shutdown(self) -> None:
        """Leave it to the application to close what is open: something may run that is to end first."""
        if self.handshake_complete and not self.close_sent:
            self.close_timeout = GOODBYE_S
        else:
            super().shutdown()

    def close_if_slow(self, now: float) -> None:
        """Close the connection when it should be closed and its client does not take the rest."""
        self.abort_if_stuck(self.transport, now)

    def keepalive_timeout(self) -> None:
        """Ask again where the answer may just not have been read, as it is behind messages that wait."""
        if self.read_paused:
            self.pong_timer = self.pending_ping_payload = None
            self.schedule_ping()
        else:
            super().keepalive_timeout()

    def data_received(self, data: bytes) -> None:
        """Parse; a head comes in one piece here, and if it is none, that ends the connection."""
        super().data_received(data)
        if not self.handshake_initiated and not self.transport.is_closing():
            self.transport.write(b"".join(self.conn.data_to_send()))
            self.transport.close()


class Server(uvicorn.Server):
    """uvicorn's server; the composition root owns the signals and the socket.

    `on_started` is called once, when requests are answered.
    """

    on_started: Callable[[], None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer on `sockets`."""
        await super().startup(sockets)
        if self.started and self.on_started is not None:
            self.on_started()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to `stop_on_signals`."""
        yield

    async def on_tick(self, counter: int) -> bool:
        """Look for slow connections now and then."""
        if counter % SWEEP_TICKS == 0:
            now = time.monotonic()
            for connection in tuple(self.server_state.connections):
                if isinstance(connection, BoundedProtocol | BoundedSocket):
                    connection.close_if_slow(now)
        return await super().on_tick(counter)


def build_server(app: Any, send_s: float, most_connections: int = 1 << 20, max_message_bytes: int = 10 << 20) -> Server:
    """Return a server for the ASGI `app`; at its end, answers under way have `send_s` to be sent.

    Connections take descriptors that sandboxes need, and anybody may make them: there are at most `most_connections`.
    A message of a WebSocket has at most `max_message_bytes`; none is compressed, for a small one might not stay small.
    """
    config = uvicorn.Config(
        app,
        http=type("Protocol", (BoundedProtocol,), {"most_connections": most_connections}),
        ws=BoundedSocket,
        ws_max_size=max_message_bytes,
        ws_ping_interval=PING_S,
        ws_ping_timeout=PING_S,
        ws_per_message_deflate=False,
        lifespan="off",
        interface="asgi3",
        access_log=False,
        log_config=None,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, round(send_s)),
    )
    return Server(config)


def stop_on_signals(loop: asyncio.AbstractEventLoop, stop: Callable[[], object]) -> None:
    """Call `stop` on `loop` for each SIGTERM or SIGINT, in place of what was called before."""
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
