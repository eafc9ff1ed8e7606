"""What lies between the bytes and the engine: limits, ids, media, origins, routing, disconnects, errors, the log."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest

from sandfork.http.log import ExecutionLog, note_request
from sandfork.metrics import Metrics
from sandfork.model import Caller, ExecPlan, ExecRequest, ExecResult, Limits, Step
from tests.support.asgi import Client
from tests.support.clock import in_virtual_time, settle, virtual_loop
from tests.support.stub_engine import StubEngine, by_code, elapse, ended, stub_app

KEYS = b'["zb_live_key1"]'
SUM = {"code": "print(1 + 1)"}


async def refuse_to_end(request: ExecRequest) -> ExecResult:
    await asyncio.Event().wait()
    raise AssertionError("unreachable")


async def take_a_second(request: ExecRequest) -> ExecResult:
    await elapse(1)
    return ended()


@in_virtual_time
async def test_a_body_declared_too_large_is_refused_unread() -> None:
    app = stub_app(max_body_bytes=1000)
    answer = await Client(app).send("POST", "/v1/exec", [], [("content-length", "1001")])
    assert answer.status == 413


@in_virtual_time
async def test_a_body_that_grows_too_large_is_refused_while_it_comes() -> None:
    engine = StubEngine()
    client = Client(stub_app(engine, max_body_bytes=1000))
    answer = await client.send("POST", "/v1/exec", [b"x" * 600, b"x" * 401, b"never read"])
    assert answer.status == 413
    assert engine.requests == []


@in_virtual_time
async def test_a_body_of_exactly_the_maximum_is_taken_in_any_pieces() -> None:
    body = json.dumps(SUM).encode()
    client = Client(stub_app(max_body_bytes=len(body)))
    answer = await client.send("POST", "/v1/exec", [body[i : i + 1] for i in range(len(body))])
    assert answer.status == 200


@in_virtual_time
async def test_a_body_that_stalls_is_408_when_its_time_is_over() -> None:
    start = virtual_loop().time()
    answer = await Client(stub_app(body_timeout_s=30.0)).send("POST", "/v1/exec", [])
    assert answer.status == 408
    assert virtual_loop().time() - start == pytest.approx(30.0, abs=0.01)


@pytest.mark.parametrize("length", ["-1", "1e3", "", "9" * 40, "0x10"])
@in_virtual_time
async def test_a_content_length_that_is_no_size_is_refused(length: str) -> None:
    answer = await Client(stub_app()).send("POST", "/v1/exec", [b"{}"], [("content-length", length)])
    assert answer.status in (400, 413)


@pytest.mark.parametrize("encoding", ["gzip", "br", "GZIP", "identity, gzip"])
@in_virtual_time
async def test_compressed_bodies_are_refused(encoding: str) -> None:
    answer = await Client(stub_app()).post("/v1/exec", SUM, content_encoding=encoding)
    assert answer.status == 415


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/json", 200),
        ("application/json; charset=utf-8", 200),
        ("Application/JSON", 200),
        ("application/problem+json", 200),
        ("application/x-www-form-urlencoded", 200),
        ("text/plain", 415),
        ("multipart/form-data; boundary=x", 415),
        ("application/xml", 415),
        ("image/png", 415),
    ],
)
@in_virtual_time
async def test_only_json_is_read_as_json(content_type: str, status: int) -> None:
    answer = await Client(stub_app()).post("/v1/exec", SUM, content_type=content_type)
    assert answer.status == status


@in_virtual_time
async def test_a_caller_without_a_key_is_refused_before_its_body_is_read() -> None:
    answer = await Client(stub_app(keys=KEYS)).send("POST", "/v1/exec", [])
    assert answer.status == 401
    assert answer.headers["www-authenticate"] == "Bearer"


@in_virtual_time
async def test_two_keys_in_one_request_are_none() -> None:
    both = [("authorization", "Bearer zb_live_key1"), ("authorization", "Bearer zb_live_key1")]
    answer = await Client(stub_app(keys=KEYS)).send("POST", "/v1/exec", [json.dumps(SUM).encode()], both)
    assert answer.status == 401


@in_virtual_time
async def test_a_malformed_body_costs_nothing() -> None:
    client = Client(stub_app(keys=KEYS), {"Authorization": "Bearer zb_live_key1"})
    for _ in range(200):
        assert (await client.post("/v1/exec", b"{")).status == 400
    assert (await client.post("/v1/exec", SUM)).status == 200


@pytest.mark.parametrize(
    ("origin", "host", "status"),
    [
        ("http://127.0.0.1:8080", "127.0.0.1:8080", 200),
        ("http://localhost:8080", "localhost:8080", 200),
        ("http://[::1]:8080", "[::1]:8080", 200),
        ("https://sandbox.example", "sandbox.example", 200),
        ("http://evil.example", "127.0.0.1:8080", 403),
        ("http://evil.example:8080", "evil.example:8080", 403),
        ("http://127.0.0.1:9999", "127.0.0.1:8080", 403),
        ("null", "127.0.0.1:8080", 403),
        ("http://[", "127.0.0.1:8080", 403),
        ("\xff", "127.0.0.1:8080", 403),
    ],
)
@in_virtual_time
async def test_in_open_mode_pages_of_other_sites_may_not_run_programs(origin: str, host: str, status: int) -> None:
    app = stub_app(allowed_origins=("https://sandbox.example",))
    answer = await Client(app).post("/v1/exec", SUM, origin=origin, host=host)
    assert answer.status == status


@in_virtual_time
async def test_with_keys_any_page_that_has_one_may_run_programs() -> None:
    client = Client(stub_app(keys=KEYS), {"X-API-Key": "zb_live_key1", "Origin": "http://elsewhere.example"})
    assert (await client.post("/v1/exec", SUM)).status == 200


@pytest.mark.parametrize(
    "path",
    ["//v1/exec", "/v1//exec", "/v1/exec/", "/zeroboot//v1/exec", "//zeroboot/v1/exec", "/exec", "/zeroboot/exec"],
)
@in_virtual_time
async def test_addresses_joined_carelessly_work(path: str) -> None:
    assert (await Client(stub_app()).post(path, SUM)).status == 200


@pytest.mark.parametrize(
    "path", ["/", "", "/nothing", "/v1", "/v1/exec/x", "/zeroboot", "/zerobootx/v1/exec", "/v1/../v1/exec"]
)
@in_virtual_time
async def test_a_path_of_no_dialect_is_404_in_every_dialects_words(path: str) -> None:
    answer = await Client(stub_app()).post(path, SUM)
    assert answer.status == 404
    assert set(answer.json) == {"error", "details", "detail"}


@in_virtual_time
async def test_a_path_below_a_prefix_is_404_in_that_dialects_words() -> None:
    answer = await Client(stub_app()).post("//zeroboot/nothing", SUM)
    assert (answer.status, set(answer.json)) == (404, {"error"})


@pytest.mark.parametrize("base", ["", "/zeroboot"])
@in_virtual_time
async def test_another_method_is_405_and_told_which_work(base: str) -> None:
    answer = await Client(stub_app()).get(f"{base}/v1/exec")
    assert (answer.status, answer.headers["allow"]) == (405, "POST")
    assert "POST" in answer.json["error"]


@in_virtual_time
async def test_a_server_of_one_dialect_speaks_no_other() -> None:
    client = Client(stub_app(dialect="zeroboot"))
    assert (await client.post("/zeroboot/v1/exec", SUM)).status == 404
    assert (await client.get("/docs")).status == 404
    assert (await client.post("/nothing", SUM)).json.keys() == {"error"}
    with pytest.raises(ValueError, match="klingon"):
        stub_app(dialect="klingon")


@in_virtual_time
async def test_a_client_that_goes_away_stops_its_program() -> None:
    engine, gone = StubEngine(refuse_to_end), asyncio.Event()
    client = Client(stub_app(engine))
    asking = asyncio.create_task(client.send("POST", "/v1/exec", [json.dumps(SUM).encode()], gone=gone))
    await elapse(10)
    assert engine.running == 1
    gone.set()
    assert (await asking).status == 0
    assert (engine.running, engine.cancelled) == (0, 1)


@in_virtual_time
async def test_a_client_that_goes_away_stops_the_whole_batch() -> None:
    engine, gone = StubEngine(refuse_to_end), asyncio.Event()
    body = json.dumps({"executions": [SUM] * 20}).encode()
    client = Client(stub_app(engine, batch_parallel=5))
    asking = asyncio.create_task(client.send("POST", "/v1/exec/batch", [body], gone=gone))
    await elapse(1)
    assert engine.running == 5
    gone.set()
    assert (await asking).status == 0
    assert (engine.running, engine.cancelled) == (0, 5)


@in_virtual_time
async def test_a_client_gone_before_it_was_watched_is_noticed() -> None:
    engine, gone = StubEngine(refuse_to_end), asyncio.Event()
    gone.set()
    client = Client(stub_app(engine, watch_after_s=0.005))
    assert (await client.send("POST", "/v1/exec", [json.dumps(SUM).encode()], gone=gone)).status == 0
    assert engine.cancelled == 1


@in_virtual_time
async def test_a_client_gone_in_the_moment_of_the_answer_ends_quietly() -> None:
    gone = asyncio.Event()

    async def rule(request: ExecRequest) -> ExecResult:
        await elapse(1)
        gone.set()
        await settle()
        return ended()

    client = Client(stub_app(StubEngine(rule)))
    assert (await client.send("POST", "/v1/exec", [json.dumps(SUM).encode()], gone=gone)).status == 0


@in_virtual_time
async def test_a_client_gone_in_the_midst_of_its_body_runs_nothing() -> None:
    engine, gone = StubEngine(), asyncio.Event()
    gone.set()
    assert (await Client(stub_app(engine)).send("POST", "/v1/exec", [], gone=gone)).status == 0
    assert engine.requests == []


@in_virtual_time
async def test_a_shutdown_cancels_the_request_and_is_not_taken_for_a_client_gone() -> None:
    engine = StubEngine(refuse_to_end)
    asking = asyncio.create_task(Client(stub_app(engine)).post("/v1/exec", SUM))
    await elapse(1)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert engine.cancelled == 1


@in_virtual_time
async def test_a_long_run_that_is_watched_is_answered() -> None:
    answer = await Client(stub_app(StubEngine(take_a_second))).post("/v1/exec", SUM)
    assert answer.json["stdout"] == "2\n"


@in_virtual_time
async def test_no_more_items_of_a_batch_run_at_once_than_set() -> None:
    engine = StubEngine(take_a_second)
    app = stub_app(engine, batch_parallel=7)
    answer = await Client(app).post("/v1/exec/batch", {"executions": [SUM] * 50})
    assert len(answer.json["results"]) == 50
    assert engine.most_running == 7


@pytest.mark.parametrize("path", ["/v1/exec", "/zeroboot/v1/exec"])
@in_virtual_time
async def test_a_mistake_of_ours_is_500_and_tells_nothing(path: str, caplog: pytest.LogCaptureFixture) -> None:
    engine = StubEngine(lambda request: RuntimeError("a secret"))
    with caplog.at_level(logging.ERROR):
        answer = await Client(stub_app(engine)).post(path, SUM)
    assert answer.status == 500
    assert b"secret" not in answer.body
    assert "a secret" in caplog.text
    assert answer.json["error"] == "internal error"


@in_virtual_time
async def test_a_mistake_of_ours_in_one_item_ends_its_batch() -> None:
    engine = StubEngine(by_code({"bad": RuntimeError("a secret")}))
    answer = await Client(stub_app(engine)).post("/v1/exec/batch", {"executions": [SUM, {"code": "bad"}, SUM]})
    assert answer.status == 500
    assert engine.running == 0


@in_virtual_time
async def test_head_answers_as_get_does() -> None:
    assert (await Client(stub_app()).send("HEAD", "/v1/health")).status == 200


@in_virtual_time
async def test_the_lifespan_protocol_is_answered() -> None:
    messages = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message["type"])

    await stub_app()({"type": "lifespan"}, receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


@in_virtual_time
async def test_health_tells_what_cannot_be_enforced() -> None:
    app = stub_app(unenforced_limits=("disk_bytes",), health_word="healthy")
    answer = await Client(app).get("/v1/health")
    assert answer.json["unenforced_limits"] == ["disk_bytes"]
    assert (answer.json["status"], answer.json["version"], answer.json["isolation"]) == ("healthy", "1.2.3", "process")


@in_virtual_time
async def test_refusals_are_counted_by_reason_once() -> None:
    metrics = Metrics()
    client = Client(stub_app(metrics=metrics, keys=KEYS))
    await client.post("/v1/exec", SUM)
    await client.post("/v1/exec", b"{", authorization="Bearer zb_live_key1")
    await client.post("/nothing", SUM)
    text = metrics.exposition().decode()
    for reason in ("unauthenticated", "invalid_request", "not_found"):
        assert f'sandfork_rejected_total{{reason="{reason}"}} 1.0' in text


def lines_of(log: list[bytes]) -> list[dict[str, Any]]:
    assert all(line.endswith(b"\n") and line.count(b"\n") == 1 for line in log)
    return [json.loads(line) for line in log]


@in_virtual_time
async def test_a_refusal_is_one_line_with_its_id_and_no_secret() -> None:
    written: list[bytes] = []
    app = stub_app(keys=KEYS, log=ExecutionLog(written.append, lambda: 1234.5))
    await Client(app).post("/v1/exec", SUM, authorization="Bearer zb_live_wrong")
    (line,) = lines_of(written)
    assert line["event"] == "refused"
    assert (line["error"], line["status"], line["dialect"], line["path"]) == (
        "unauthenticated",
        401,
        "native",
        "/v1/exec",
    )
    assert line["ts"] == 1234.5
    assert b"zb_live" not in written[0]


@in_virtual_time
async def test_an_execution_is_one_line_with_every_id_and_no_content() -> None:
    written: list[bytes] = []
    log = ExecutionLog(written.append, lambda: 0.0)

    def rule(request: ExecRequest) -> ExecResult:
        caller = engine.callers[-1]
        step = Step(("python",), "main.py", b"a secret program", (("NAME", "a secret value"),), b"a secret input")
        plan = ExecPlan("exec-1", caller, "python", "python-bare", step, Limits())
        result = ended(exec_id="exec-1", stdout=b"a secret output", written_bytes=(15, 0))
        log.observe(caller, plan, result)
        return result

    engine = StubEngine(rule)
    app = stub_app(engine, keys=b'[{"name": "ci", "key": "k1"}]', log=log)
    await Client(app).post("/zeroboot/v1/exec", SUM, authorization="Bearer k1")
    (line,) = lines_of(written)
    assert line["event"] == "execution"
    assert (line["exec_id"], line["key_id"], line["dialect"]) == ("exec-1", "ci", "zeroboot")
    assert line["request_id"]
    assert (line["outcome"], line["exit_code"], line["language"], line["template"]) == (
        "exited",
        0,
        "python",
        "python-bare",
    )
    assert (line["code_bytes"], line["stdin_bytes"], line["stdout_bytes"]) == (16, 14, 15)
    assert (line["fork_ms"], line["exec_ms"], line["total_ms"]) == (0.75, 7.2, 8.0)
    assert b"secret" not in written[0]


def test_an_execution_that_gave_no_result_is_logged_by_its_reason() -> None:
    written: list[bytes] = []
    ExecutionLog(written.append, lambda: 0.0).observe(Caller("ci"), None, asyncio.CancelledError())
    (line,) = lines_of(written)
    assert (line["error"], line["key_id"]) == ("CancelledError", "ci")


@in_virtual_time
async def test_other_log_records_are_given_the_ids_of_their_request() -> None:
    def rule(request: ExecRequest) -> ExecResult:
        assert note_request(record)
        return ended()

    record = logging.makeLogRecord({})
    assert note_request(record)
    assert not hasattr(record, "request_id")
    app = stub_app(StubEngine(rule), keys=b'[{"name": "ci", "key": "k1"}]')
    await Client(app).post("/v1/exec", SUM, authorization="Bearer k1")
    assert (len(record.request_id), record.key_id) == (36, "ci")  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", ["/docs", "/faber/swagger-ui"])
@in_virtual_time
async def test_a_page_runs_only_its_own_script(path: str) -> None:
    answer = await Client(stub_app()).get(path)
    assert answer.status == 200
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe-inline" not in policy
    assert policy.count("'sha256-") == 2
    assert b"http://" not in answer.body
    assert b"https://" not in answer.body
    assert b"innerHTML" not in answer.body
