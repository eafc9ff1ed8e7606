"""isol8's document, example by example, through the application: under its prefix, at root, and alone."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import pytest

from sandfork.errors import Forbidden, ForkFailed, NotSupported, Overloaded, UnknownLanguage
from sandfork.model import Command, ExecRequest, ExecResult, LimitsOverride, Outcome, Snippet, Stream, TemplateHealth
from tests.support.asgi import Client
from tests.support.clock import in_virtual_time, virtual_loop
from tests.support.dialects import exact_places, places
from tests.support.stub_engine import StubEngine, StubRun, by_code, elapse, ended, stub_app

KEYS = b'["my-key", "another"]'
KEY = {"Authorization": "Bearer my-key"}
LOOP = {"request": {"code": "for i in range(3): print(i)", "runtime": "python"}}
HELLO = {"request": {"code": "print('hello')", "runtime": "python"}}
HOUR_S = 3600.0
everywhere = places("isol8")
exactly = exact_places("isol8")


def socket_path(base: str) -> str:
    return f"{base}/execute/ws"


class Socket:
    """A WebSocket to an application: what was told, and how it was closed."""

    def __init__(self, app: Any, path: str, headers: dict[str, str] | None = None) -> None:
        self.told: list[dict[str, Any]] = []
        self.closed: int | None = None
        self.refused: int | None = None
        self._said: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._arrived = asyncio.Event()
        scope = {
            "type": "websocket",
            "path": path,
            "query_string": b"",
            "headers": [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()],
            "client": ("127.0.0.1", 50000),
        }
        self._said.put_nowait({"type": "websocket.connect"})
        self.over = asyncio.create_task(app(scope, self._said.get, self._send))

    async def _send(self, message: dict[str, Any]) -> None:
        if message["type"] == "websocket.send":
            self.told.append(json.loads(message["text"]))
            self._arrived.set()
        elif message["type"] == "websocket.close":
            self.closed = message["code"]
            self._said.put_nowait({"type": "websocket.disconnect"})
        elif message["type"] == "websocket.http.response.start":
            self.refused = message["status"]

    def say(self, message: Any) -> None:
        text = message if isinstance(message, str) else json.dumps(message)
        self._said.put_nowait({"type": "websocket.receive", "text": text})

    async def hear(self) -> None:
        """Wait until something more was told."""
        self._arrived.clear()
        await self._arrived.wait()


async def converse(app: Any, path: str, *messages: Any, headers: dict[str, str] | None = None) -> Socket:
    """Say everything at once and return the connection when it is over."""
    socket = Socket(app, path, headers)
    for message in messages:
        socket.say(message)
    await socket.over
    return socket


def events_of(body: bytes) -> list[tuple[str, str]]:
    """Return the events of a stream."""
    lines = [line for line in body.decode().split("\n\n") if line]
    events = [json.loads(line.removeprefix("data: ")) for line in lines]
    return [(event["type"], event["data"]) for event in events]


@everywhere
@in_virtual_time
async def test_the_first_example_is_answered_as_printed(base: str, dialect: str | None) -> None:
    engine = StubEngine(lambda request: ended(stdout=b"hello\n", started_s=1771070400.0))
    body = {
        "request": {
            "code": "print('hello')",
            "runtime": "python",
            "timeoutMs": 5000,
            "env": {"MY_VAR": "value"},
            "stdin": "input data",
            "files": {"/sandbox/data.csv": "a,b\n1,2"},
            "outputPaths": ["/sandbox/out.txt"],
        },
        "options": {
            "network": "none",
            "memoryLimit": "512m",
            "cpuLimit": 1.0,
            "timeoutMs": 30000,
            "sandboxSize": "64m",
            "tmpSize": "64m",
        },
        "sessionId": "optional-session-id",
    }
    answer = await Client(stub_app(engine, dialect=dialect)).post(f"{base}/execute", body)
    assert answer.status == 200
    printed = {
        "stdout": "hello\n",
        "stderr": "",
        "exitCode": 0,
        "truncated": False,
        "runtime": "python",
        "timestamp": "2026-02-14T12:00:00.000Z",
        "containerId": "optional-session-id",
        "files": {},
    }
    assert {name: answer.json[name] for name in printed} == printed
    assert set(answer.json) - set(printed) == {"durationMs", "executionId", "resourceUsage"}
    assert isinstance(answer.json["durationMs"], int)


@everywhere
@in_virtual_time
async def test_the_curl_example_streams_what_it_prints(base: str, dialect: str | None) -> None:
    async def count(run: StubRun) -> ExecResult:
        for number in range(3):
            await run.write(b"%d\n" % number)
        await run.write(b"Warning: deprecated\n", Stream.STDERR)
        return ended()

    engine = StubEngine(script=count)
    answer = await Client(stub_app(engine, dialect=dialect, keys=KEYS), KEY).post(f"{base}/execute/stream", LOOP)
    assert (answer.status, answer.headers["content-type"]) == (200, "text/event-stream")
    assert answer.body == (
        b'data: {"type":"stdout","data":"0\\n"}\n\n'
        b'data: {"type":"stdout","data":"1\\n"}\n\n'
        b'data: {"type":"stdout","data":"2\\n"}\n\n'
        b'data: {"type":"stderr","data":"Warning: deprecated\\n"}\n\n'
        b'data: {"type":"exit","data":"0"}\n\n'
    )


@in_virtual_time
async def test_a_stream_belongs_to_no_session() -> None:
    engine = StubEngine()
    answer = await Client(stub_app(engine)).post("/execute/stream", {**LOOP, "sessionId": "s"})
    assert events_of(answer.body) == [("stdout", "2\n"), ("exit", "0")]
    assert engine.requests[0].session is None
    assert (await Client(stub_app(engine)).get("/sessions")).json == {"sessions": []}


@in_virtual_time
async def test_a_timeout_in_a_stream_is_an_error_and_then_exit_137() -> None:
    engine = StubEngine(lambda request: ended(outcome=Outcome.TIMED_OUT, exit_code=None, signal=9, stdout=b"x"))
    answer = await Client(stub_app(engine)).post("/execute/stream", LOOP)
    kinds, data = zip(*events_of(answer.body), strict=True)
    assert kinds == ("stdout", "error", "exit")
    assert "EXECUTION TIMED OUT" in data[1]
    assert data[2] == "137"


@in_virtual_time
async def test_what_goes_wrong_before_anything_was_told_is_an_ordinary_answer() -> None:
    engine = StubEngine(lambda request: UnknownLanguage("cobol", ("bash", "node", "python")))
    client = Client(stub_app(engine))
    for path in ("/isol8/execute", "/isol8/execute/stream"):
        answer = await client.post(path, {"request": {"code": "1", "runtime": "cobol"}})
        assert (answer.status, answer.headers["content-type"]) == (400, "application/json")
        assert answer.json == {"error": 'Unknown runtime: "cobol". Available: bash, node, python'}


@in_virtual_time
async def test_what_goes_wrong_later_is_the_last_event() -> None:
    async def fail(run: StubRun) -> ExecResult:
        await run.write(b"so far")
        await elapse(1.0)
        raise ForkFailed("no", step="clone3")

    answer = await Client(stub_app(StubEngine(script=fail))).post("/execute/stream", LOOP)
    assert answer.status == 200
    assert events_of(answer.body) == [
        ("stdout", "so far"),
        ("error", "Execution failed: the sandbox could not be used (fork_failed)"),
    ]


@exactly
@in_virtual_time
async def test_a_missing_key_is_401_and_a_wrong_one_403_on_every_path_but_health(
    base: str, dialect: str | None
) -> None:
    app = stub_app(keys=KEYS, dialect=dialect)
    paths = [("POST", "/execute"), ("POST", "/execute/stream"), ("POST", "/file"), ("GET", "/file?sessionId=s&path=p")]
    for method, path in [*paths, ("DELETE", "/session/s"), ("GET", "/sessions")]:
        missing = await Client(app).send(method, base + path, [b"{}"])
        assert (missing.status, missing.json) == (401, {"error": "Missing Authorization header"}), path
        wrong = await Client(app, {"Authorization": "Bearer no"}).send(method, base + path, [b"{}"])
        assert (wrong.status, wrong.json) == (403, {"error": "Invalid API key"}), path
    for headers, status in (({}, 401), ({"Authorization": "Bearer no"}, 403)):
        socket = await converse(app, socket_path(base), headers=headers)
        assert (socket.refused, socket.closed) == (status, None)
    health = await Client(app).get(f"{base}/health")
    assert (health.status, health.json) == (200, {"status": "ok", "version": "1.2.3"})


@exactly
@in_virtual_time
async def test_health_is_503_when_no_template_is_ready(base: str, dialect: str | None) -> None:
    engine = StubEngine(templates=(TemplateHealth("command", False, 0, 0, 0, "no"),))
    answer = await Client(stub_app(engine, dialect=dialect)).get(f"{base}/health")
    assert (answer.status, answer.json["status"]) == (503, "unavailable")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Forbidden("network: 'host' is above the server's ceiling of 'none'"), 403),
        (NotSupported("network: 'filtered' is not available on this server; use 'none'"), 501),
        (Overloaded("full", retry_after_s=2.0), 503),
        (ForkFailed("no", step="clone3"), 500),
    ],
)
@in_virtual_time
async def test_every_refusal_of_the_engine_is_one_sentence(error: Exception, status: int) -> None:
    answer = await Client(stub_app(StubEngine(lambda request: error))).post("/isol8/execute", HELLO)
    assert (answer.status, set(answer.json)) == (status, {"error"})


@in_virtual_time
async def test_a_refused_option_runs_nothing() -> None:
    engine = StubEngine()
    for options in ({"image": "alpine"}, {"readonlyRootFs": False}, {"security": {"seccomp": "unconfined"}}):
        answer = await Client(stub_app(engine)).post("/execute", {**HELLO, "options": options})
        assert (answer.status, "ceiling" in answer.json["error"]) == (403, True)
    assert engine.requests == []


@everywhere
@in_virtual_time
async def test_files_go_into_a_session_and_come_out_again(base: str, dialect: str | None) -> None:
    client = Client(stub_app(StubEngine(), dialect=dialect, keys=KEYS), KEY)
    upload = {"sessionId": "my-session", "path": "/sandbox/data.csv", "content": "Y29sMSxjb2wyCjEsMg=="}
    missing = await client.post(f"{base}/file", upload)
    assert (missing.status, missing.json) == (404, {"error": "Session not found"})
    assert (await client.post(f"{base}/execute", {**HELLO, "sessionId": "my-session"})).status == 200
    written = await client.post(f"{base}/file", upload)
    assert (written.status, written.json) == (200, {"ok": True})
    read = await client.get(f"{base}/file?sessionId=my-session&path=%2Fsandbox%2Fdata.csv")
    assert (read.status, read.json) == (200, {"content": "Y29sMSxjb2wyCjEsMg=="})
    nothing = await client.get(f"{base}/file?sessionId=my-session&path=/sandbox/no")
    assert (nothing.status, set(nothing.json)) == (404, {"error"})
    unsaid = await client.get(f"{base}/file?sessionId=my-session")
    assert (unsaid.status, unsaid.json) == (400, {"error": "Missing sessionId or path"})


def cut(body: str, size: int) -> list[bytes]:
    return [body.encode()[start : start + size] for start in range(0, len(body), size)]


@everywhere
@pytest.mark.parametrize("size", [1, 7, 1 << 20])
@in_virtual_time
async def test_a_file_is_taken_out_of_its_body_however_that_is_written_and_cut(
    base: str, dialect: str | None, size: int
) -> None:
    client = Client(stub_app(StubEngine(), dialect=dialect))
    assert (await client.post(f"{base}/execute", {**HELLO, "sessionId": "s"})).status == 200
    content = bytes(range(256)) * 3
    text = base64.encodebytes(content).decode().replace("/", "\\/").replace("\n", "\\n").replace("+", "\\u002b")
    body = f'{{"other": {{"content": [1]}}, "\\u0063ontent": "{text}", "path": "a\\"b", "sessionId": "s"}}'
    written = await client.send("POST", f"{base}/file", cut(body, size))
    assert (written.status, written.json) == (200, {"ok": True})
    read = await client.get(f"{base}/file?sessionId=s&path=a%22b")
    assert base64.b64decode(read.json["content"]) == content


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [
        ('"*"', 400, "content: is not valid base64"),
        ('"QQ="', 400, "content: is not valid base64"),
        ('"QQ==", "content": "QQ=="', 400, "content: is given twice"),
        ("7", 400, "content: expected str, got int"),
        ('"QQ\\x"', 400, "the body is not valid JSON"),
        ('"QQ==', 400, "the body is not valid JSON"),
        (f'"{"QUFB" * 100}"', 413, None),
        ('"", "more": "' + "x" * (2 << 20) + '"', 413, None),
    ],
)
@in_virtual_time
async def test_a_file_that_cannot_be_taken_is_refused(content: str, status: int, words: str | None) -> None:
    client = Client(stub_app(StubEngine(), max_upload_bytes=256))
    assert (await client.post("/isol8/execute", {**HELLO, "sessionId": "s"})).status == 200
    body = f'{{"sessionId": "s", "path": "a", "content": {content}}}'
    for size in (1000, 1 << 22):
        refused = await client.send("POST", "/isol8/file", cut(body, size))
        assert (refused.status, set(refused.json)) == (status, {"error"})
        assert words is None or refused.json == {"error": words}
    assert (await client.get("/isol8/file?sessionId=s&path=a")).status == 404


@everywhere
@in_virtual_time
async def test_a_session_is_made_by_its_first_run_listed_and_deleted(base: str, dialect: str | None) -> None:
    engine = StubEngine(now=lambda: 1771070400.5)
    client = Client(stub_app(engine, dialect=dialect))
    assert (await client.get(f"{base}/sessions")).json == {"sessions": []}
    for _ in range(2):
        assert (await client.post(f"{base}/execute", {**HELLO, "sessionId": "a/b ä"})).status == 200
    assert (await client.get(f"{base}/sessions")).json == {
        "sessions": [{"id": "a/b ä", "isActive": False, "lastAccessedAt": "2026-02-14T12:00:00.500Z"}]
    }
    for _ in range(2):
        gone = await client.send("DELETE", f"{base}/session/a%2Fb%20%C3%A4")
        assert (gone.status, gone.json) == (200, {"ok": True})
    assert (await client.get(f"{base}/sessions")).json == {"sessions": []}


@in_virtual_time
async def test_a_session_has_one_runtime() -> None:
    client = Client(stub_app())
    assert (await client.post("/execute", {**HELLO, "sessionId": "s"})).status == 200
    answer = await client.post("/execute", {"request": {"code": "1", "runtime": "node"}, "sessionId": "s"})
    assert answer.status == 409
    assert answer.json["error"].startswith('Cannot switch runtime from "python" to "node"')
    assert (await client.post("/execute", {"request": {"cmd": "ls"}, "sessionId": "s"})).status == 200


@in_virtual_time
async def test_a_session_of_another_key_is_unknown() -> None:
    app = stub_app(keys=KEYS)
    mine, other = Client(app, KEY), Client(app, {"Authorization": "Bearer another"})
    assert (await mine.post("/isol8/execute", {**HELLO, "sessionId": "s"})).status == 200
    assert (await other.get("/isol8/sessions")).json == {"sessions": []}
    assert (await other.get("/isol8/file?sessionId=s&path=a")).status == 404
    assert (await other.send("DELETE", "/isol8/session/s")).json == {"ok": True}
    assert len((await mine.get("/isol8/sessions")).json["sessions"]) == 1


@in_virtual_time
async def test_a_session_that_is_idle_for_an_hour_is_gone() -> None:
    loop = virtual_loop()
    client = Client(stub_app(StubEngine(now=loop.time)))
    assert (await client.post("/execute", {**HELLO, "sessionId": "s"})).status == 200
    await elapse(HOUR_S - 1)
    assert len((await client.get("/sessions")).json["sessions"]) == 1
    await elapse(2.0)
    assert (await client.get("/sessions")).json == {"sessions": []}


@in_virtual_time
async def test_what_a_run_is_limited_to_is_what_its_options_say() -> None:
    engine = StubEngine()
    options = {"memoryLimit": "64m", "cpuLimit": 0.5, "pidsLimit": 9, "maxOutputSize": 7, "timeoutMs": 4000}
    await Client(stub_app(engine)).post("/execute", {"request": {"cmd": ["ls"]}, "options": options})
    (request,) = engine.requests
    assert request.program == Command(("ls",))
    assert request.limits == LimitsOverride(4.0, None, 64 << 20, 9, None, 7, None, 0.5)


@everywhere
@in_virtual_time
async def test_a_run_over_a_websocket_is_told_and_the_connection_closed(base: str, dialect: str | None) -> None:
    engine = StubEngine(by_code({"x": ended(stdout=b"out", stderr=b"err", exit_code=3)}))
    app = stub_app(engine, dialect=dialect, keys=KEYS)
    message = {"type": "execute", "request": {"code": "x", "runtime": "python"}, "sessionId": "s"}
    socket = await converse(app, socket_path(base), message, headers=KEY)
    assert socket.told == [
        {"type": "stdout", "data": "out"},
        {"type": "stderr", "data": "err"},
        {"type": "exit", "data": "3"},
    ]
    assert socket.closed == 1000
    assert len((await Client(app, KEY).get(f"{base}/sessions")).json["sessions"]) == 1


@in_virtual_time
async def test_events_that_come_together_are_a_message_each() -> None:
    engine = StubEngine(lambda request: ended(outcome=Outcome.TIMED_OUT, exit_code=None, signal=9, stdout=b"\n"))
    socket = await converse(stub_app(engine), "/execute/ws", {"type": "execute", **LOOP})
    assert [event["type"] for event in socket.told] == ["stdout", "error", "exit"]
    assert (socket.told[2]["data"], socket.closed) == ("137", 1000)


@in_virtual_time
async def test_what_is_fed_or_signalled_too_early_is_passed_over() -> None:
    early = [{"type": "stdin", "data": "input\n"}, {"type": "signal", "signal": "SIGINT"}]
    socket = await converse(stub_app(), "/execute/ws", *early, {"type": "execute", **HELLO})
    assert [event["type"] for event in socket.told] == ["stdout", "exit"]
    assert socket.closed == 1000


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("this is not json", "Invalid JSON"),
        ({"type": "unknown-type", "data": "test"}, "Unknown message type"),
        ({"type": "execute", "request": {"code": "1"}}, "request.runtime: is required"),
        ({"type": "execute", **HELLO, "options": {"image": "x"}}, "options.image"),
    ],
)
@in_virtual_time
async def test_a_message_that_is_wrong_is_an_error_and_ends_the_connection(message: Any, words: str) -> None:
    engine = StubEngine()
    socket = await converse(stub_app(engine), "/isol8/execute/ws", message)
    (event,) = socket.told
    assert (event["type"], words in event["data"], socket.closed) == ("error", True, 1003)
    assert engine.requests == []


@in_virtual_time
async def test_what_the_engine_refuses_over_a_websocket_is_an_error_and_no_exit() -> None:
    engine = StubEngine(lambda request: UnknownLanguage("cobol", ("python",)))
    message = {"type": "execute", "request": {"code": "1", "runtime": "cobol"}}
    socket = await converse(stub_app(engine), "/execute/ws", message)
    assert socket.told == [{"type": "error", "data": 'Unknown runtime: "cobol". Available: python'}]
    assert socket.closed == 1000


@in_virtual_time
async def test_a_program_is_fed_and_signalled_over_a_websocket() -> None:
    async def talk(run: StubRun) -> ExecResult:
        await run.write(b"name? ")
        await run.write(b"hello " + await run.read())
        return ended(exit_code=128 + await run.signalled())

    socket = Socket(stub_app(StubEngine(script=talk)), "/execute/ws")
    socket.say({"type": "execute", **HELLO, "keepStdin": True})
    await socket.hear()
    socket.say({"type": "stdin", "data": "you\n"})
    await socket.hear()
    socket.say({"type": "signal", "signal": "SIGTERM"})
    await socket.over
    assert [event["data"] for event in socket.told] == ["name? ", "hello you\n", "143"]


@in_virtual_time
async def test_a_secret_goes_to_the_engine_to_be_masked_and_to_the_program() -> None:
    seen: list[ExecRequest] = []

    def rule(request: ExecRequest) -> ExecResult:
        seen.append(request)
        return ended()

    body = {"request": {"code": "echo $T", "runtime": "bash"}, "options": {"secrets": {"T": "s3cret"}}}
    assert (await Client(stub_app(StubEngine(rule))).post("/execute", body)).status == 200
    assert seen[0].program == Snippet("bash", "echo $T")
    assert (seen[0].env, seen[0].secrets) == ((("T", "s3cret"),), ("s3cret",))
