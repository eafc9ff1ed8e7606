"""Executions over a WebSocket: who may, what is said, what ends it, what becomes of a program whose client is gone."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sandfork.errors import ForkFailed, Overloaded
from sandfork.model import ExecResult
from tests.support.asgi import Client, Socket
from tests.support.clock import in_virtual_time, pass_time, settle, virtual_loop
from tests.support.stub_engine import StubEngine, StubRun, ended, stub_app

KEYS = b'["zb_live_key1"]'
START = {"type": "start", "code": "x"}


async def echo(run: StubRun) -> ExecResult:
    """Write what is fed, until it ends."""
    while data := await run.read():
        await run.write(data)
    return ended()


async def wait_for_signal(run: StubRun) -> ExecResult:
    number = await run.signalled()
    return ended(exit_code=None, signal=number)


async def for_ever(run: StubRun) -> ExecResult:
    await asyncio.Event().wait()
    raise AssertionError("unreachable")


def socket_of(engine: StubEngine, **settings: Any) -> Socket:
    return Client(stub_app(engine, **settings)).connect("/v1/exec/ws")


@in_virtual_time
async def test_a_program_is_run_fed_and_told_of() -> None:
    engine = StubEngine(script=echo)
    socket = socket_of(engine)
    socket.tell(START)
    assert (await socket.hear())["type"] == "started"
    socket.tell({"type": "stdin", "data": "é"})
    assert await socket.hear() == {"type": "stdout", "text": "é"}
    socket.tell(b"\x01\xff")
    assert await socket.hear() == {"type": "stdout", "text": "\x01�"}
    socket.tell({"type": "end_stdin"})
    result = await socket.hear()
    assert (result["type"], result["exit_code"]) == ("result", 0)
    assert bytes(engine.runs[0].fed) == "é".encode() + b"\x01\xff"
    await socket.close()


@in_virtual_time
async def test_one_program_comes_after_another_on_one_connection() -> None:
    engine = StubEngine()
    socket = socket_of(engine)
    for _ in range(3):
        socket.tell(START)
        assert [each["type"] for each in await socket.hear_until("result")] == ["started", "stdout", "result"]
    await socket.close()
    assert len(engine.requests) == 3


@in_virtual_time
async def test_an_interpreter_of_a_session_is_given_its_input_whole() -> None:
    engine = StubEngine(script=wait_for_signal)
    client = Client(stub_app(engine))
    await client.post("/v1/sessions", {"id": "s"})
    socket = client.connect("/v1/exec/ws")
    socket.tell({**START, "session": "s", "stdin": "all of it"})
    assert (await socket.hear())["type"] == "started"
    socket.tell({"type": "end_stdin"})
    socket.tell({"type": "stdin", "data": "more"})
    assert (await socket.hear())["code"] == "invalid_request"
    socket.tell({"type": "signal", "signal": 2})
    assert (await socket.hear())["type"] == "result"
    socket.tell({**START, "session": "s", "fresh": True})
    socket.tell({"type": "signal", "signal": 2})
    await socket.hear_until("result")
    assert [each.keep_stdin for each in engine.requests] == [False, True]
    assert engine.requests[0].stdin == b"all of it"
    await socket.close()


@in_virtual_time
async def test_each_event_is_a_message_also_those_that_come_together() -> None:
    socket = socket_of(StubEngine(lambda request: ended(stdout=b"\n\xe2\x82", stderr=b"\xc3")))
    socket.tell(START)
    told = [(each["type"], each.get("text")) for each in await socket.hear_until("result")]
    assert told == [("started", None), ("stdout", "\n"), ("stdout", "�"), ("stderr", "�"), ("result", None)]
    await socket.close()


@in_virtual_time
async def test_a_signal_reaches_the_program() -> None:
    socket = socket_of(StubEngine(script=wait_for_signal))
    socket.tell(START)
    socket.tell({"type": "signal", "signal": "SIGINT"})
    assert (await socket.hear_until("result"))[-1]["signal"] == 2
    await socket.close()


@in_virtual_time
async def test_a_second_program_is_refused_while_one_runs_and_the_first_goes_on() -> None:
    socket = socket_of(StubEngine(script=echo))
    socket.tell(START)
    assert (await socket.hear())["type"] == "started"
    socket.tell(START)
    assert (await socket.hear())["code"] == "invalid_request"
    socket.tell({"type": "end_stdin"})
    assert (await socket.hear())["type"] == "result"
    await socket.close()


@pytest.mark.parametrize("message", ["{", {"type": "stdin", "data": "x"}, {"type": "start", "code": 7}])
@in_virtual_time
async def test_a_message_that_cannot_be_obeyed_is_told_and_the_connection_stays(message: Any) -> None:
    socket = socket_of(StubEngine())
    socket.tell(message)
    refused = await socket.hear()
    assert (refused["type"], refused["code"]) == ("error", "invalid_request")
    socket.tell(START)
    assert (await socket.hear_until("result"))[-1]["type"] == "result"
    await socket.close()


@in_virtual_time
async def test_what_is_said_to_a_program_that_is_over_is_no_error() -> None:
    socket = socket_of(StubEngine())
    socket.tell(START)
    await socket.hear_until("result")
    socket.tell({"type": "stdin", "data": "too late"})
    socket.tell({"type": "signal", "signal": 15})
    socket.tell(START)
    assert (await socket.hear())["type"] == "started"
    await socket.hear_until("result")
    await socket.close()


@pytest.mark.parametrize("error", [Overloaded("full"), ForkFailed("a secret"), RuntimeError("a secret")])
@in_virtual_time
async def test_an_error_is_an_event_and_the_connection_stays(error: Exception) -> None:
    engine = StubEngine(lambda request: error)
    socket = socket_of(engine)
    socket.tell(START)
    told = (await socket.hear_until("error"))[-1]
    assert told["code"] == getattr(error, "code", "internal")
    assert "secret" not in told["error"]
    engine.rule = lambda request: ended()
    socket.tell(START)
    assert (await socket.hear_until("result"))[-1]["type"] == "result"
    await socket.close()


@pytest.mark.parametrize("script", [for_ever, echo])
@in_virtual_time
async def test_a_client_that_goes_away_ends_its_program(script: Any) -> None:
    engine = StubEngine(script=script)
    socket = socket_of(engine)
    socket.tell(START)
    await socket.hear()
    assert engine.running == 1
    await socket.close()
    assert (engine.running, engine.cancelled) == (0, 1)


@in_virtual_time
async def test_a_client_that_does_not_read_makes_the_program_wait_and_is_given_up() -> None:
    async def flood(run: StubRun) -> ExecResult:
        while True:
            await run.write(b"x" * 10_000)

    engine, start_s = StubEngine(script=flood), virtual_loop().time()
    socket = socket_of(engine, stall_s=30.0)
    socket.tell(START)
    await socket.hear()
    socket.taking.clear()
    await settle()
    assert engine.runs[0].paused
    await socket.task
    assert engine.cancelled == 1
    assert virtual_loop().time() - start_s == pytest.approx(30.0, abs=1)


@in_virtual_time
async def test_a_program_that_does_not_read_makes_the_client_wait() -> None:
    async def deaf(run: StubRun) -> ExecResult:
        await goes_on.wait()
        return await echo(run)

    goes_on, engine = asyncio.Event(), StubEngine(script=deaf)
    socket = socket_of(engine)
    socket.tell(START)
    for _ in range(40):
        socket.tell(b"x" * 100_000)
    await settle(200)
    unread = socket.unread
    assert 20 < unread < 35
    goes_on.set()
    socket.tell({"type": "end_stdin"})
    await socket.hear_until("result")
    assert len(engine.runs[0].fed) == 4_000_000
    await socket.close()


@in_virtual_time
async def test_a_client_that_says_nothing_is_closed_but_not_while_its_program_runs() -> None:
    start_s = virtual_loop().time()
    silent = socket_of(StubEngine(), socket_idle_s=60.0)
    await silent.task
    assert silent.code == 1008
    assert virtual_loop().time() - start_s == pytest.approx(60.0, abs=0.1)

    async def takes_long(run: StubRun) -> ExecResult:
        await pass_time(500)
        return ended()

    busy = socket_of(StubEngine(script=takes_long), socket_idle_s=60.0)
    busy.tell(START)
    assert (await busy.hear_until("result"))[-1]["type"] == "result"
    await busy.task
    assert busy.code == 1008


@in_virtual_time
async def test_a_message_that_is_too_large_ends_the_connection() -> None:
    socket = socket_of(StubEngine(), max_body_bytes=1000)
    socket.tell(b"x" * 1001)
    await socket.task
    assert socket.code == 1009


@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer wrong"}])
@in_virtual_time
async def test_a_caller_without_a_key_is_refused_before_anything_is_accepted(headers: dict[str, str]) -> None:
    socket = Client(stub_app(keys=KEYS)).connect("/v1/exec/ws", **headers)
    await socket.task
    assert (socket.accepted, socket.refused.status) == (False, 401)
    assert socket.refused.json["code"] == "unauthenticated"


@in_virtual_time
async def test_a_caller_with_a_key_is_let_in() -> None:
    socket = Client(stub_app(keys=KEYS)).connect("/v1/exec/ws", authorization="Bearer zb_live_key1")
    socket.tell(START)
    assert (await socket.hear_until("result"))[-1]["type"] == "result"
    await socket.close()


@pytest.mark.parametrize(
    ("origin", "accepted"),
    [("http://evil.example", False), ("null", False), ("http://127.0.0.1:9", False), ("http://127.0.0.1:8080", True)],
)
@in_virtual_time
async def test_in_open_mode_pages_of_other_sites_get_no_connection(origin: str, accepted: bool) -> None:
    socket = Client(stub_app()).connect("/v1/exec/ws", origin=origin)
    await settle()
    assert socket.accepted is accepted
    assert accepted or socket.refused.status == 403
    await socket.close()


@in_virtual_time
async def test_each_program_is_charged() -> None:
    app = stub_app(keys=b'[{"name": "ci", "key": "k1", "rate_per_s": 1}]')
    socket = Client(app).connect("/v1/exec/ws", authorization="Bearer k1")
    socket.tell(START)
    assert (await socket.hear_until("result"))[-1]["type"] == "result"
    socket.tell(START)
    assert (await socket.hear())["code"] == "rate_limited"
    await socket.close()


@pytest.mark.parametrize("path", ["/v1/exec", "/nothing", "/zeroboot/v1/exec"])
@in_virtual_time
async def test_where_there_is_no_websocket_none_is_opened(path: str) -> None:
    socket = Client(stub_app()).connect(path)
    await socket.task
    assert (socket.accepted, socket.refused.status) == (False, 404)


@in_virtual_time
async def test_a_plain_request_where_there_is_a_websocket_is_told_so() -> None:
    answer = await Client(stub_app()).get("/v1/exec/ws")
    assert (answer.status, answer.headers["upgrade"]) == (426, "websocket")


@in_virtual_time
async def test_a_shutdown_ends_the_program() -> None:
    engine = StubEngine(script=for_ever)
    socket = socket_of(engine)
    socket.tell(START)
    await socket.hear()
    socket.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await socket.task
    assert engine.cancelled == 1
