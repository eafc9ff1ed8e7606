"""Tell a client what its program does while it does it, as server-sent events.

The first bytes leave when there is something to tell. Until then an error is an ordinary answer; afterwards the stream
ends with the dialect's words for it. Output that the client does not take makes the program wait: it waits in a bounded
buffer, then the sandbox is not read, then the program's pipe is full.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from sandfork.dialects.base import EventWriter
from sandfork.errors import SandforkError
from sandfork.http.exchange import Exchange
from sandfork.http.outbox import Outbox, Patience
from sandfork.http.ports import ExecutionEngine, RunningExecution
from sandfork.model import Caller, Display, ExecRequest, Stream

if TYPE_CHECKING:
    from sandfork.http.endpoints import HttpSettings

log = logging.getLogger(__name__)

EVENT_STREAM = b"text/event-stream"
HEADERS = ((b"cache-control", b"no-store"), (b"x-accel-buffering", b"no"))
PING = b": ping\n\n"


class Telling:
    """One execution that is told as it goes: an `OutputSink` that writes to an outbox, which is closed at its end."""

    def __init__(self, writer: EventWriter, outbox: Outbox, request_id: str) -> None:
        self._writer = writer
        self._outbox = outbox
        self._request_id = request_id
        self.running: RunningExecution | None = None
        self.started = asyncio.Event()
        self._early_signals: set[int] = set()

    async def execute(self, engine: ExecutionEngine, request: ExecRequest, caller: Caller) -> None:
        """Run the program and tell of it to its end. *Raises* SandforkError when no result came of it."""
        try:
            result = await engine.execute(request, caller, self, self.start)
        finally:
            self._outbox.on_room = None
        self._outbox.put(self._writer.finished(result))

    def start(self, running: RunningExecution) -> None:
        """Take the handle of the execution."""
        self.running = running
        self.started.set()
        for number in self._early_signals:
            running.signal(number)
        self._outbox.on_room = running.resume
        self._outbox.put(self._writer.started(running.exec_id))

    def signal(self, number: int) -> None:
        """Send the program a signal, as soon as there is one."""
        if self.running is None:
            self._early_signals.add(number)
        else:
            self.running.signal(number)

    def output(self, stream: Stream, data: bytes) -> bool:
        """Tell what the program wrote; whether more may come now."""
        return self._outbox.put(self._writer.output(stream, data))

    def display(self, shown: Display) -> None:
        """Tell what the program showed."""
        self._outbox.put(self._writer.display(shown))

    def fail(self, error: Exception) -> None:
        """Tell that no result can be given; what is no error of ours to show is logged."""
        if not isinstance(error, SandforkError):
            log.error("request %s failed", self._request_id, exc_info=error)
            error = SandforkError("internal error")
        self._outbox.put(self._writer.failed(error, self._request_id))


class EventStream:
    """One answer that is a stream of events."""

    def __init__(
        self, settings: HttpSettings, engine: ExecutionEngine, exchange: Exchange, writer: EventWriter
    ) -> None:
        self._ping_s = settings.ping_s
        self._engine = engine
        self._exchange = exchange
        self._outbox = Outbox(settings.stream_buffer_bytes)
        self._telling = Telling(writer, self._outbox, exchange.request_id)
        self._patience = Patience(settings.stall_s, lambda: self._outbox.full or self._outbox.closed)
        self._refused: Exception | None = None

    async def run(self, request: ExecRequest, caller: Caller) -> None:
        """Run the program and send what it does. *Raises* ClientGone; what the engine raises, if nothing was sent."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._execute(request, caller))
                await self._pump()
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        if self._refused is not None:
            raise self._refused

    async def _execute(self, request: ExecRequest, caller: Caller) -> None:
        try:
            await self._telling.execute(self._engine, request, caller)
        except Exception as error:  # told to the client, or raised by `run`
            if self._exchange.begun:
                self._telling.fail(error)
            else:
                self._refused = error
        self._outbox.close()

    async def _pump(self) -> None:
        exchange, outbox = self._exchange, self._outbox
        while True:
            closed = outbox.closed
            try:
                async with asyncio.timeout(self._ping_s):
                    texts = await outbox.take()
            except TimeoutError:
                texts = []
                chunk = PING
            else:
                chunk = "".join(texts).encode()
            if self._refused is not None:
                return
            if not exchange.begun:
                await self._patience.send(exchange.begin(EVENT_STREAM, HEADERS))
            if closed and not texts:
                break
            if chunk:
                await self._patience.send(exchange.push(chunk))
        await self._patience.send(exchange.push(b"", more=False))
