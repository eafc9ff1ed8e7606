"""The application behind the real HTTP server, over real sockets: keep-alive, pipelining, refusals, disconnects."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import uvloop

from sandfork.model import ExecRequest, ExecResult, Snippet
from sandfork.serve_http import build_server
from tests.support.stub_engine import StubEngine, ended, stub_app

PATIENCE_S = 20.0
"""No test takes this long; it only keeps a broken one from hanging."""

Reader, Writer = asyncio.StreamReader, asyncio.StreamWriter


def echo_code(request: ExecRequest) -> ExecResult:
    assert isinstance(request.program, Snippet)
    return ended(stdout=request.program.code.encode())


def post(value: Any, path: str = "/v1/exec", **headers: str) -> bytes:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {text}" for name, text in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def read_answer(reader: Reader) -> tuple[int, dict[str, str], bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
    return int(head[0].split()[1]), headers, await reader.readexactly(int(headers["content-length"]))


@contextlib.asynccontextmanager
async def serving(app: Any) -> AsyncIterator[int]:
    """Serve `app` on a port of its own; gives the port."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = build_server(app, send_s=1.0)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = server.force_exit = True
        await task


def over_sockets(engine: StubEngine, test: Callable[[int], Awaitable[None]], **settings: Any) -> None:
    """Run `test` with the port of an application over `engine`."""

    async def run() -> None:
        async with asyncio.timeout(PATIENCE_S), serving(stub_app(engine, **settings)) as port:
            await test(port)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


@contextlib.asynccontextmanager
async def connection(port: int) -> AsyncIterator[tuple[Reader, Writer]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def test_a_connection_is_kept_for_the_next_request() -> None:
    async def test(port: int) -> None:
        async with connection(port) as (reader, writer):
            for number in range(5):
                writer.write(post({"code": f"run {number}"}))
                status, _, body = await read_answer(reader)
                assert (status, json.loads(body)["stdout"]) == (200, f"run {number}")

    over_sockets(StubEngine(echo_code), test)


def test_requests_sent_at_once_are_answered_in_order() -> None:
    async def test(port: int) -> None:
        async with connection(port) as (reader, writer):
            good = [post({"code": f"run {number}"}) for number in range(8)]
            writer.write(b"".join([*good[:4], post(b"{"), *good[4:]]))
            answers = [await read_answer(reader) for _ in range(9)]
        assert [status for status, _, _ in answers] == [200] * 4 + [400] + [200] * 4
        ran = [json.loads(body)["stdout"] for status, _, body in answers if status == 200]
        assert ran == [f"run {number}" for number in range(8)]

    over_sockets(StubEngine(echo_code), test)


def test_a_request_may_come_a_byte_at_a_time() -> None:
    async def test(port: int) -> None:
        async with connection(port) as (reader, writer):
            for byte in post({"code": "slow"}):
                writer.write(bytes((byte,)))
                await writer.drain()
            status, _, body = await read_answer(reader)
        assert (status, json.loads(body)["stdout"]) == (200, "slow")

    over_sockets(StubEngine(echo_code), test)


def test_a_chunked_body_is_read_and_bounded() -> None:
    async def test(port: int) -> None:
        head = b"POST /v1/exec HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        async with connection(port) as (reader, writer):
            writer.write(head + b'9\r\n{"code": \r\n5\r\n"hi"}\r\n0\r\n\r\n')
            assert (await read_answer(reader))[0] == 200
        async with connection(port) as (reader, writer):
            writer.write(head + b"800\r\n" + b"x" * 2048 + b"\r\n")
            assert (await read_answer(reader))[0] == 413

    over_sockets(StubEngine(echo_code), test, max_body_bytes=1024)


@pytest.mark.parametrize("keys", [b"", b'["k"]'])
def test_after_a_refusal_of_an_unread_body_the_connection_still_works(keys: bytes) -> None:
    async def test(port: int) -> None:
        async with connection(port) as (reader, writer):
            writer.write(post(b"x" * 5000))
            status, _, _ = await read_answer(reader)
            assert status == (401 if keys else 413)
            writer.write(post({"code": "next"}, Authorization="Bearer k"))
            status, _, body = await read_answer(reader)
            assert (status, json.loads(body)["stdout"]) == (200, "next")

    over_sockets(StubEngine(echo_code), test, max_body_bytes=10_000 if keys else 1024, keys=keys)


def test_a_body_declared_too_large_is_refused_before_it_is_sent() -> None:
    async def test(port: int) -> None:
        async with connection(port) as (reader, writer):
            writer.write(b"POST /v1/exec HTTP/1.1\r\nHost: x\r\nContent-Length: 99999\r\nExpect: 100-continue\r\n\r\n")
            assert (await read_answer(reader))[0] == 413

    over_sockets(StubEngine(), test, max_body_bytes=1024)


def test_a_client_that_closes_its_connection_stops_its_program() -> None:
    started, stopped = asyncio.Event(), asyncio.Event()

    async def rule(request: ExecRequest) -> ExecResult:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()
        raise AssertionError("unreachable")

    engine = StubEngine(rule)

    async def test(port: int) -> None:
        async with connection(port) as (_, writer):
            writer.write(post({"code": "for ever"}))
            await started.wait()
        await stopped.wait()
        assert (engine.cancelled, engine.running) == (1, 0)

    over_sockets(engine, test)


def test_head_has_the_headers_of_get_and_no_body() -> None:
    async def test(port: int) -> None:
        async with connection(port) as (reader, writer):
            writer.write(b"HEAD /v1/health HTTP/1.1\r\nHost: x\r\n\r\n" + post({"code": "next"}))
            head = await reader.readuntil(b"\r\n\r\n")
            assert b"200 OK" in head
            assert (await read_answer(reader))[0] == 200

    over_sockets(StubEngine(echo_code), test)
