"""Have the engine do what is no execution: sessions, their files and terminals, and tasks."""

from __future__ import annotations

import binascii
import contextlib
import secrets
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from typing import Any
from urllib.parse import quote

from sandfork.dialects.actions import (
    Action,
    CloseTerminal,
    CreateRootfs,
    CreateSession,
    CreateSnapshot,
    DeleteFile,
    DeleteImage,
    DeleteSession,
    FileReply,
    InterruptSession,
    ListFiles,
    ListImages,
    ListSessions,
    ListTerminals,
    OpenTerminal,
    ReadFile,
    ReadImage,
    ReadSession,
    ReadTask,
    ReadTerminal,
    ResizeTerminal,
    StartTask,
    WriteFile,
)
from sandfork.dialects.base import JSON, ActionRoute, Dialect, Reply
from sandfork.errors import FileNotInSandbox, NotSupported, SessionNotFound
from sandfork.http.endpoints import DialectEndpoint, Service
from sandfork.http.exchange import Exchange
from sandfork.http.forms import Form, Room
from sandfork.http.intake import bounds_for, charge, identify
from sandfork.http.lifting import Lifted, body_bytes
from sandfork.http.outbox import Patience
from sandfork.http.ports import ExecutionEngine
from sandfork.model import Caller, SessionKey

OCTETS = b"application/octet-stream"


class Doing:
    """Does what one caller asks of the engine; `content` is what a WriteFile writes."""

    def __init__(self, engine: ExecutionEngine, space: str, caller: Caller, content: AsyncIterable[bytes]) -> None:
        self._sessions = engine.sessions
        self._tasks = engine.tasks
        self._images = engine.images
        self._space = space
        self._caller = caller
        self._content = content

    async def perform(self, action: Action) -> Any:
        """Return what `action` comes to. *Raises* SandforkError."""
        if isinstance(action, ListFiles | WriteFile | DeleteFile):
            return await self._perform_on_files(action)
        if isinstance(action, OpenTerminal | ReadTerminal | ListTerminals | ResizeTerminal | CloseTerminal):
            return await self._perform_on_terminals(action)
        if isinstance(action, ListImages | ReadImage | DeleteImage | CreateRootfs | CreateSnapshot):
            return await self._perform_on_images(action)
        match action:
            case CreateSession():
                name = action.name or secrets.token_hex(16)
                return await self._sessions.create(self.key(name), self._caller, action.spec)
            case ReadSession():
                return self._sessions.state(self.key(action.name))
            case ListSessions():
                return self._sessions.list(self._space, self._caller.key_id)
            case DeleteSession():
                with contextlib.suppress(SessionNotFound) if action.missing else contextlib.nullcontext():
                    await self._sessions.delete(self.key(action.name))
            case InterruptSession():
                self._sessions.interrupt(self.key(action.name))
            case StartTask():
                return self._tasks.start(action.request, self._caller)
            case ReadTask():
                return self._tasks.read(action.task_id, self._caller)
        return None

    def key(self, name: str) -> SessionKey:
        """Return the key of the caller's session of that name."""
        return SessionKey(self._space, self._caller.key_id, name)

    async def open_file(self, action: ReadFile) -> tuple[int, AsyncIterator[bytes]]:
        """Return a file's size and its content in chunks."""
        return await self._sessions.read_file(self.key(action.session), action.path)

    async def _perform_on_files(self, action: ListFiles | WriteFile | DeleteFile) -> Any:
        key = self.key(action.session)
        match action:
            case ListFiles():
                return await self._sessions.list_files(key, action.path)
            case WriteFile():
                return await self._sessions.write_file(key, action.path, self._content)
            case DeleteFile():
                return await self._sessions.delete_file(key, action.path)

    async def _perform_on_terminals(
        self, action: OpenTerminal | ReadTerminal | ListTerminals | ResizeTerminal | CloseTerminal
    ) -> Any:
        key = self.key(action.session)
        match action:
            case OpenTerminal():
                return await self._sessions.open_terminal(key, action.spec, action.name)
            case ReadTerminal():
                return self._sessions.terminal(key, action.name)
            case ListTerminals():
                return self._sessions.terminals(key)
            case ResizeTerminal():
                self._sessions.resize_terminal(key, action.name, action.cols, action.rows)
                return self._sessions.terminal(key, action.name)
            case CloseTerminal():
                return await self._sessions.close_terminal(key, action.name)

    async def _perform_on_images(
        self, action: ListImages | ReadImage | DeleteImage | CreateRootfs | CreateSnapshot
    ) -> Any:
        if self._images is None:
            raise NotSupported("this server makes and keeps no images and no snapshots")
        match action:
            case ListImages():
                return await self._images.list(action.kind, remote=action.remote)
            case ReadImage():
                return await self._images.read(action.kind, action.name)
            case DeleteImage():
                return await self._images.remove(action.kind, action.name)
            case CreateRootfs():
                return self._images.build(action.language, action.size_mb)
            case CreateSnapshot():
                return self._images.snapshot(action.name, action.language, action.mem_mb, action.vcpus)


async def _generator(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """Yield from any iterator as a generator, so that it can be closed; a generator behind it is closed with it."""
    try:
        async for chunk in chunks:
            yield chunk
    finally:
        close = getattr(chunks, "aclose", None)
        if close is not None:
            await close()


class ActionEndpoint(DialectEndpoint):
    """Has done what was asked for and tells what it came to."""

    def __init__(self, service: Service, dialect: Dialect, route: ActionRoute, room: Room) -> None:
        """`room` is what the files of all forms may take on disk."""
        super().__init__(dialect)
        self._service = service
        self._settings = service.settings
        self._of = dialect
        self._route = route
        self._room = room
        self._quotas = service.settings.quotas_of(dialect)
        self._max_bytes = self._settings.max_upload_bytes if route.upload else self._settings.max_body_bytes
        if route.lifted is not None:
            self._max_bytes = body_bytes(self._settings.max_upload_bytes)

    async def answer(self, exchange: Exchange) -> Reply | None:
        """Body limit, identify, read what is not passed on as it comes, parse, charge, perform, render."""
        service, route = self._service, self._route
        exchange.check_length(self._max_bytes)
        exchange.check_encoding()
        form = Form(self._room) if route.form else None
        has_json = route.body_type is not None and not (form is not None and form.fits(exchange))
        if has_json:
            exchange.check_json()
        settings = self._settings
        taken = form if route.lifted is None else Lifted(self._room, route.lifted, settings.max_upload_bytes)
        caller = await identify(service, self._of, exchange, with_body=has_json and route.lifted is None)
        chunks = exchange.body_chunks(self._max_bytes, settings.body_timeout_s, settings.upload_s)
        try:
            if has_json and route.lifted is None:
                await exchange.read_body(self._max_bytes, settings.body_timeout_s)
            elif taken is not None:
                await taken.read(exchange, chunks)
            content = chunks if taken is None else taken.spool.chunks()
            action = route.parse(exchange.raw, bounds_for(caller, settings.bounds))
            charge(service, caller, route.cost, self._quotas)
            doing = Doing(service.engine, self.dialect, caller, content)
            if isinstance(action, ReadFile):
                await exchange.while_connected(self._send_file(exchange, doing, action), settings.watch_after_s)
                return None
            reply = route.render(action, await doing.perform(action), exchange.request_id)
            assert isinstance(reply, Reply)
            return reply
        finally:
            await chunks.aclose()
            if taken is not None:
                taken.close()

    async def _send_file(self, exchange: Exchange, doing: Doing, action: ReadFile) -> None:
        """Send a file as it is read. One that is shorter than it was ends the connection, which tells the client."""
        patience = Patience(self._settings.stall_s, lambda: True)
        size_bytes, chunks = await doing.open_file(action)
        async with contextlib.aclosing(_generator(chunks)) as content:
            reply = self._route.render(action, size_bytes, exchange.request_id)
            assert isinstance(reply, FileReply)
            if reply.around is None:
                name = quote(action.path.rpartition("/")[2].encode("utf-8", "replace"), safe="")
                further = (b"content-disposition", b"attachment; filename*=UTF-8''" + name.encode())
                await patience.send(exchange.begin(OCTETS, ((b"content-length", b"%d" % size_bytes), further)))
            else:
                length = sum(map(len, reply.around)) + (size_bytes + 2) // 3 * 4
                await patience.send(exchange.begin(JSON, ((b"content-length", b"%d" % length),)))
            if exchange.scope["method"] != "HEAD":
                async for piece in _enclosed(_exactly(content, size_bytes, action.path), reply.around):
                    await patience.send(exchange.push(piece))
            await patience.send(exchange.push(b"", more=False))


async def _exactly(content: AsyncIterator[bytes], size_bytes: int, path: str) -> AsyncIterator[bytes]:
    """Yield the content of a file of that size. *Raises* FileNotInSandbox when it is of another."""
    left_bytes = size_bytes
    async for chunk in content:
        if len(chunk) > left_bytes:
            raise FileNotInSandbox(f"{path}: grew while it was read")
        left_bytes -= len(chunk)
        yield chunk
    if left_bytes:
        raise FileNotInSandbox(f"{path}: shrank while it was read")


async def _enclosed(content: AsyncIterator[bytes], around: tuple[bytes, bytes] | None) -> AsyncIterator[bytes]:
    """Yield content as it is, or as base64 between two texts."""
    if around is None:
        async for chunk in content:
            yield chunk
        return
    yield around[0]
    rest = b""  # of a group of three bytes, which are four characters
    async for chunk in content:
        chunk = rest + chunk
        whole = len(chunk) - len(chunk) % 3
        rest = chunk[whole:]
        yield binascii.b2a_base64(memoryview(chunk)[:whole], newline=False)
    yield binascii.b2a_base64(rest, newline=False) + around[1]
