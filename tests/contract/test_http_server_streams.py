"""Streams and WebSockets behind the real HTTP server: flow control over sockets, disconnects, refusals, the end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import uvloop
import websockets
from websockets.asyncio.client import ClientConnection, connect

from sandfork import serve_http
from sandfork.model import ExecResult, SessionKey
from sandfork.serve_http import build_server
from tests.support.stub_engine import StubEngine, StubRun, ended, stub_app

PATIENCE_S = 20.0
"""No test takes this long; it only keeps a broken one from hanging."""

STREAM = b'{"code": "x", "stream": true}'
KERNEL_BYTES = 64 << 10
"""A small buffer of the kernel's, so that little is on its way."""


@contextlib.asynccontextmanager
async def serving(app: Any, max_message_bytes: int) -> AsyncIterator[int]:
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, KERNEL_BYTES)
    server = build_server(app, send_s=1.0, max_message_bytes=max_message_bytes)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = server.force_exit = True
        await task


def over_sockets(
    engine: StubEngine, test: Callable[[int], Awaitable[None]], max_message_bytes: int = 1 << 20, **settings: Any
) -> None:
    async def run() -> None:
        async with (
            asyncio.timeout(PATIENCE_S),
            serving(stub_app(engine, **settings), max_message_bytes) as port,
        ):
            await test(port)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


class Deaf:
    """A client that reads nothing unless it is told to."""

    def __init__(self, port: int) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, KERNEL_BYTES)
        self._socket.setblocking(False)
        self._port = port

    async def ask(self, body: bytes) -> None:
        head = f"POST /v1/exec HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        loop = asyncio.get_running_loop()
        await loop.sock_connect(self._socket, ("127.0.0.1", self._port))
        await loop.sock_sendall(self._socket, head + body)

    async def read(self, size: int = 1 << 16) -> bytes:
        return await asyncio.get_running_loop().sock_recv(self._socket, size)

    def close(self) -> None:
        self._socket.close()


class Flood:
    """A program that writes without end until it has to wait, and tells what becomes of it."""

    def __init__(self, enough_bytes: int = 1 << 40) -> None:
        self.written = 0
        self.waits, self.over = asyncio.Event(), asyncio.Event()
        self._enough_bytes = enough_bytes

    async def __call__(self, run: StubRun) -> ExecResult:
        try:
            while self.written < self._enough_bytes:
                await run.write(b"x" * 50_000)
                self.written += 50_000
                if run.paused:
                    self.waits.set()
                await asyncio.sleep(0)
        finally:
            self.over.set()
        return ended()


def test_the_first_chunk_leaves_while_the_program_runs() -> None:
    goes_on = asyncio.Event()

    async def script(run: StubRun) -> ExecResult:
        await run.write(b"first")
        await goes_on.wait()
        return ended()

    async def test(port: int) -> None:
        client = Deaf(port)
        await client.ask(STREAM)
        seen = b""
        while b'"text":"first"' not in seen:
            seen += await client.read()
        assert b"event: result" not in seen
        goes_on.set()
        while not seen.endswith(b"0\r\n\r\n"):
            seen += await client.read()
        assert b"event: result" in seen
        client.close()

    over_sockets(StubEngine(script=script), test)


def test_a_client_that_does_not_read_makes_the_program_wait_with_little_in_between() -> None:
    flood = Flood(enough_bytes=20_000_000)

    async def test(port: int) -> None:
        client = Deaf(port)
        await client.ask(STREAM)
        await flood.waits.wait()
        written, before = flood.written, -1
        while written != before:
            before = written
            for _ in range(1000):
                await asyncio.sleep(0)
            written = flood.written
        assert written < 4_000_000
        size = 0
        while chunk := await client.read():
            size += len(chunk)
            if chunk.endswith(b"0\r\n\r\n"):
                break
        assert flood.written == 20_000_000
        assert size > flood.written
        client.close()

    over_sockets(StubEngine(script=flood), test)


def test_a_client_that_closes_its_connection_stops_a_program_that_waits_for_it() -> None:
    flood = Flood()

    async def test(port: int) -> None:
        client = Deaf(port)
        await client.ask(STREAM)
        await flood.waits.wait()
        client.close()
        await flood.over.wait()

    over_sockets(StubEngine(script=flood), test)


def test_a_client_that_never_reads_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_http, "CLOSING_S", 0.0)
    monkeypatch.setattr(serve_http, "SWEEP_TICKS", 1)
    flood = Flood()

    async def test(port: int) -> None:
        client = Deaf(port)
        await client.ask(STREAM)
        await flood.over.wait()
        with contextlib.suppress(ConnectionResetError):
            while await client.read():
                pass
        client.close()

    over_sockets(StubEngine(script=flood), test, stall_s=0.2)


async def echo(run: StubRun) -> ExecResult:
    while data := await run.read():
        await run.write(data)
    return ended()


def url(port: int, path: str = "/v1/exec/ws") -> str:
    return f"ws://127.0.0.1:{port}{path}"


async def hear(client: ClientConnection) -> Any:
    message = await client.recv()
    return json.loads(message) if isinstance(message, str) else message


def test_a_program_is_run_over_a_websocket() -> None:
    async def test(port: int) -> None:
        async with connect(url(port), compression="deflate") as client:
            assert "Sec-WebSocket-Extensions" not in (client.response.headers if client.response else {})
            await client.send('{"type": "start", "code": "x"}')
            assert (await hear(client))["type"] == "started"
            await client.send(b"\x00bytes")
            assert await hear(client) == {"type": "stdout", "text": "\x00bytes"}
            await client.send('{"type": "end_stdin"}')
            assert (await hear(client))["type"] == "result"

    over_sockets(StubEngine(script=echo), test)


@pytest.mark.parametrize("key", ["", "wrong"])
def test_a_websocket_without_a_key_is_refused_with_a_status(key: str) -> None:
    async def test(port: int) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        with pytest.raises(websockets.InvalidStatus) as caught:
            async with connect(url(port), additional_headers=headers):
                pass
        assert caught.value.response.status_code == 401
        assert json.loads(caught.value.response.body or b"")["code"] == "unauthenticated"
        assert caught.value.response.headers["www-authenticate"] == "Bearer"

    over_sockets(StubEngine(), test, keys=b'["k"]')


def test_a_websocket_of_another_sites_page_is_refused() -> None:
    async def test(port: int) -> None:
        with pytest.raises(websockets.InvalidStatus) as caught:
            async with connect(url(port), origin="http://evil.example"):  # type: ignore[arg-type]  # a NewType of str
                pass
        assert caught.value.response.status_code == 403

    over_sockets(StubEngine(), test)


def test_a_message_larger_than_the_bound_ends_the_connection() -> None:
    async def test(port: int) -> None:
        async with connect(url(port)) as client:
            with contextlib.suppress(websockets.ConnectionClosed):
                await client.send("x" * 20_001)
                await client.recv()
            assert client.close_code == 1009

    over_sockets(StubEngine(), test, max_message_bytes=20_000)


def test_a_program_that_does_not_read_makes_its_websocket_wait() -> None:
    goes_on, engine = asyncio.Event(), StubEngine()

    async def deaf(run: StubRun) -> ExecResult:
        await goes_on.wait()
        return await echo(run)

    async def test(port: int) -> None:
        async with connect(url(port), max_size=None, write_limit=1) as client:
            await client.send('{"type": "start", "code": "x"}')
            sent = 0

            async def send() -> None:
                nonlocal sent
                for _ in range(300):
                    await client.send(b"y" * 100_000)
                    sent += 1
                await client.send('{"type": "end_stdin"}')

            sending, before = asyncio.create_task(send()), -1
            while sent != before or sent == 0:
                before = sent
                for _ in range(2000):
                    await asyncio.sleep(0)
            assert sent < 150
            goes_on.set()
            while (await hear(client))["type"] != "result":
                pass
            await sending
            assert len(engine.runs[0].fed) == 30_000_000

    engine.script = deaf
    over_sockets(engine, test)


def test_a_client_that_leaves_without_a_word_ends_its_program() -> None:
    over = asyncio.Event()

    async def script(run: StubRun) -> ExecResult:
        try:
            await asyncio.Event().wait()
        finally:
            over.set()
        raise AssertionError("unreachable")

    async def test(port: int) -> None:
        client = await connect(url(port))
        await client.send('{"type": "start", "code": "x"}')
        assert (await hear(client))["type"] == "started"
        client.transport.abort()
        await over.wait()

    over_sockets(StubEngine(script=script), test)


def test_a_websocket_is_not_dropped_for_an_answer_that_waits_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_http, "PING_S", 0.02)
    engine, enough, ask, pings = StubEngine(), asyncio.Event(), serve_http.BoundedSocket.send_keepalive_ping, 0

    def count(self: serve_http.BoundedSocket) -> None:
        nonlocal pings
        pings += 1
        if pings == 5:
            enough.set()
        ask(self)

    async def deaf(run: StubRun) -> ExecResult:
        await enough.wait()
        return await echo(run)

    async def test(port: int) -> None:
        async with connect(url(port), max_size=None, ping_interval=None) as client:
            await client.send('{"type": "start", "code": "x"}')

            async def send() -> None:
                for _ in range(60):
                    await client.send(b"y" * 100_000)
                await client.send('{"type": "end_stdin"}')

            sending = asyncio.create_task(send())
            while (await hear(client))["type"] != "result":
                pass
            await sending

    monkeypatch.setattr(serve_http.BoundedSocket, "send_keepalive_ping", count)
    engine.script = deaf
    over_sockets(engine, test)


def test_a_head_that_websockets_cannot_have_ends_the_connection() -> None:
    async def test(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = "GET /v1/exec/ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        writer.write(f"{head}X: {'x' * 20_000}\r\n\r\n".encode())
        await reader.read()
        writer.close()

    over_sockets(StubEngine(), test)


def test_a_terminal_is_reached_over_a_websocket() -> None:
    engine = StubEngine()

    async def test(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for path, body in (("/v1/sessions", b'{"id": "s"}'), ("/v1/sessions/s/terminals", b"{}")):
            head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            writer.write(head + body)
            assert b" 201 " in await reader.readuntil(b"\r\n\r\n")
            await reader.readuntil(b"}")
        writer.close()
        (terminal,) = engine.sessions.terminals(SessionKey("native", "address:127.0.0.1", "s"))
        async with connect(url(port, f"/v1/sessions/s/terminals/{terminal.name}/ws")) as client:
            await client.send(b"\xffexit\n")
            assert await hear(client) == b"\xffexit\n"
            assert await hear(client) == {"type": "exit", "exit_code": 0}
            await client.wait_closed()
            assert client.close_code == 1000

    over_sockets(engine, test)


def test_an_upload_and_a_file_go_through_byte_for_byte() -> None:
    content = bytes(range(256)) * 20_000

    async def test(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b'POST /v1/sessions HTTP/1.1\r\nHost: x\r\nContent-Length: 11\r\n\r\n{"id": "s"}')
        await reader.readuntil(b'"metadata":{}}')
        path = "/v1/sessions/s/files/..%2Fsandbox%2Fa"
        writer.write(f"PUT {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content)
        await reader.readuntil(b'"size_bytes":5120000}')
        writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"content-length: 5120000\r\n" in head
        assert await reader.readexactly(len(content)) == content
        writer.close()

    over_sockets(StubEngine(), test, max_body_bytes=1000)
