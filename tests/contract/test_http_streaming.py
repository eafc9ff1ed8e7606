"""Answers that come while the program runs: what is sent when, slow clients and those that go, errors."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sandfork.errors import ForkFailed, InvalidRequest, Overloaded
from sandfork.metrics import Metrics
from sandfork.model import ExecResult, Stream
from tests.support.asgi import Client, Streamed
from tests.support.clock import in_virtual_time, pass_time, settle, virtual_loop
from tests.support.stub_engine import StubEngine, StubRun, ended, stub_app

BODY = {"code": "x", "stream": True}
KEYS = b'["zb_live_key1"]'


async def for_ever(run: StubRun) -> ExecResult:
    await asyncio.Event().wait()
    raise AssertionError("unreachable")


async def flood(run: StubRun) -> ExecResult:
    for _ in range(1000):
        await run.write(b"x" * 10_000)
    return ended()


def streamed(engine: StubEngine, **settings: Any) -> Streamed:
    return Client(stub_app(engine, **settings)).begin("POST", "/v1/exec", BODY)


@in_virtual_time
async def test_what_a_program_writes_is_told_while_it_runs() -> None:
    goes_on = asyncio.Event()

    async def script(run: StubRun) -> ExecResult:
        await run.write(b"first\n")
        await goes_on.wait()
        await run.write(b"second", Stream.STDERR)
        run.show("display", text_plain="shown")
        return ended()

    answer = streamed(StubEngine(script=script))
    await answer.until("first")
    assert [each["type"] for each in answer.events] == ["started", "stdout"]
    assert not answer.complete
    goes_on.set()
    whole = await answer.end()
    assert whole.status == 200
    assert whole.headers["content-type"] == "text/event-stream"
    assert (whole.headers["cache-control"], whole.headers["x-accel-buffering"]) == ("no-store", "no")
    assert "content-length" not in whole.headers
    assert answer.complete
    assert [each["type"] for each in answer.events] == ["started", "stdout", "stderr", "display", "result"]
    assert answer.events[3]["data"] == {"text/plain": "shown"}
    assert answer.events[-1]["outcome"] == "exited"


@in_virtual_time
async def test_a_program_that_writes_nothing_is_answered_too() -> None:
    answer = streamed(StubEngine(lambda request: ended(stdout=b"")))
    await answer.end()
    assert [each["type"] for each in answer.events] == ["started", "result"]


@pytest.mark.parametrize(
    ("error", "status"), [(Overloaded("full", retry_after_s=3), 503), (InvalidRequest("env", "no"), 400)]
)
@in_virtual_time
async def test_an_error_before_the_first_byte_is_an_ordinary_answer(error: Exception, status: int) -> None:
    answer = await streamed(StubEngine(lambda request: error)).end()
    assert (answer.status, answer.headers["content-type"]) == (status, "application/json")
    assert int(answer.headers["content-length"]) == len(answer.body)
    assert answer.json["code"] == getattr(error, "code", None)


@pytest.mark.parametrize("error", [ForkFailed("a secret"), RuntimeError("a secret")])
@in_virtual_time
async def test_an_error_after_the_first_byte_is_an_event_and_the_last(error: Exception) -> None:
    async def script(run: StubRun) -> ExecResult:
        await run.write(b"first")
        await settle()
        raise error

    answer = streamed(StubEngine(script=script))
    await answer.end()
    assert answer.complete
    assert [each["type"] for each in answer.events] == ["started", "stdout", "error"]
    assert answer.events[-1]["code"] == ("fork_failed" if isinstance(error, ForkFailed) else "internal")
    assert len(answer.events[-1]["request_id"]) == 36
    assert b"secret" not in answer.answer.body


@in_virtual_time
async def test_a_mistake_of_ours_before_the_first_byte_is_500() -> None:
    answer = await streamed(StubEngine(lambda request: RuntimeError("a secret"))).end()
    assert answer.status == 500
    assert b"secret" not in answer.body


@in_virtual_time
async def test_a_client_that_goes_away_ends_a_program_that_writes_nothing() -> None:
    engine = StubEngine(script=for_ever)
    answer = streamed(engine)
    await pass_time(1)
    assert engine.running == 1
    answer.gone.set()
    await answer.end()
    assert (engine.running, engine.cancelled) == (0, 1)
    assert not answer.complete


@in_virtual_time
async def test_a_client_that_goes_away_ends_a_program_that_waits_for_it() -> None:
    engine = StubEngine(script=flood)
    answer = streamed(engine)
    answer.taking.clear()
    await pass_time(1)
    assert engine.runs[0].paused
    answer.gone.set()
    await answer.end()
    assert engine.cancelled == 1


@in_virtual_time
async def test_a_slow_client_makes_the_program_wait_and_misses_nothing() -> None:
    engine = StubEngine(script=flood)
    answer = streamed(engine, stream_buffer_bytes=50_000)
    answer.taking.clear()
    await pass_time(1)
    assert engine.runs[0].paused
    while not answer.complete:
        answer.taking.set()
        await settle(1)
        answer.taking.clear()
        await settle(3)
    await answer.end()
    assert sum(len(each["text"]) for each in answer.events if each["type"] == "stdout") == 10_000_000
    assert max(map(len, answer.chunks)) < 100_000


@in_virtual_time
async def test_a_client_that_never_reads_is_given_up_with_its_program() -> None:
    engine, start_s = StubEngine(script=flood), virtual_loop().time()
    answer = streamed(engine, stall_s=30.0)
    answer.taking.clear()
    await answer.end()
    assert engine.cancelled == 1
    assert virtual_loop().time() - start_s == pytest.approx(30.0, abs=1)


@in_virtual_time
async def test_a_client_that_does_not_take_the_end_is_given_up() -> None:
    answer = streamed(StubEngine(), stall_s=30.0)
    answer.taking.clear()
    await answer.end()
    assert answer.answer.status == 0


@in_virtual_time
async def test_a_client_that_does_not_read_is_not_given_up_while_nobody_waits_for_it() -> None:
    goes_on = asyncio.Event()

    async def script(run: StubRun) -> ExecResult:
        await run.write(b"a little")
        await goes_on.wait()
        return ended()

    engine = StubEngine(script=script)
    answer = streamed(engine, stall_s=30.0)
    answer.taking.clear()
    await pass_time(100)
    assert engine.running == 1
    goes_on.set()
    await settle()
    answer.taking.set()
    await answer.end()
    assert answer.events[-1]["type"] == "result"


@in_virtual_time
async def test_a_silent_program_is_heard_of_every_so_often() -> None:
    engine = StubEngine(script=for_ever)
    answer = streamed(engine, ping_s=15.0)
    await pass_time(50)
    assert answer.answer.body.count(b": ping\n\n") == 3
    answer.gone.set()
    await answer.end()


@in_virtual_time
async def test_a_shutdown_ends_the_program_and_is_not_taken_for_a_client_gone() -> None:
    engine = StubEngine(script=for_ever)
    answer = streamed(engine)
    await pass_time(1)
    answer.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await answer.task
    assert engine.cancelled == 1


@in_virtual_time
async def test_a_streamed_run_is_charged_as_any_other() -> None:
    from sandfork.access import AccessSettings

    client = Client(stub_app(keys=KEYS, access=AccessSettings(rate_per_s=1.0)), {"X-API-Key": "zb_live_key1"})
    first = client.begin("POST", "/v1/exec", BODY)
    await first.end()
    second = await client.begin("POST", "/v1/exec", BODY).end()
    assert (first.answer.status, second.status) == (200, 429)


@in_virtual_time
async def test_a_stream_that_fails_is_counted_by_the_engine_and_not_as_a_refusal() -> None:
    metrics = Metrics()
    answer = streamed(StubEngine(lambda request: Overloaded("full", retry_after_s=1)), metrics=metrics)
    assert (await answer.end()).status == 503
    assert b"sandfork_rejected_total{" not in metrics.exposition()


@pytest.mark.parametrize("cut", range(1, 8))
@in_virtual_time
async def test_text_is_the_same_wherever_it_is_cut(cut: int) -> None:
    output = "aé€😀\r\n\n: data: \x00\u2028".encode() + b"\xff\xe2\x82"

    async def script(run: StubRun) -> ExecResult:
        for start in range(0, len(output), cut):
            await run.write(output[start : start + cut])
            await settle()
        return ended()

    answer = streamed(StubEngine(script=script))
    await answer.end()
    text = "".join(each["text"] for each in answer.events if each["type"] == "stdout")
    assert text == output.decode("utf-8", "replace")
